// What Asks.java does, in Go.
package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"
	"time"

	wasmkiln "github.com/wasmkiln/wasmkiln/client/go"
)

var (
	flags   = flag.NewFlagSet("asks", flag.ExitOnError)
	key     = flags.String("key", "", "")
	engine  = flags.String("engine", "", "")
	out     = flags.String("out", "", "")
	ca      = flags.String("ca", "", "")
	token   = flags.String("token-file", "", "")
	digest  = flags.String("digest", "", "")
	timeout = flags.Int("timeout-ms", 60_000, "")
	times   = flags.Int("times", 1, "")
	store   = flags.String("store", "", "")
	pause   = flags.String("pause", "", "")
	load    = flags.String("load", "", "")
	input   = bufio.NewReader(os.Stdin)
)

func main() {
	_ = flags.Parse(os.Args[3:])
	ctx, cancel := context.WithCancel(context.Background())
	if *pause == "call" {
		go func() {
			_, _ = input.ReadString('\n')
			cancel()
		}()
	}
	for ; *times > 0; *times-- {
		err := ask(ctx, os.Args[1], os.Args[2])
		var failure *wasmkiln.Error
		switch {
		case errors.Is(err, context.Canceled):
			say("cancelled", "", "", "", "")
		case errors.As(err, &failure):
			retry := ""
			if failure.RetryAfter > 0 {
				retry = fmt.Sprint(failure.RetryAfter.Milliseconds())
			}
			say(failure.Reason, failure.RequestID, retry, failure.Metadata["cause"], failure.Error())
		case err != nil:
			say("unusable", "", "", "", err.Error())
		}
	}
}

func ask(ctx context.Context, address, path string) error {
	module, err := os.ReadFile(path)
	if err != nil {
		panic(err)
	}
	options := wasmkiln.Options{TokenFile: *token, NoHostStore: *store == "", Timeout: time.Duration(*timeout) * time.Millisecond}
	if *key != "" {
		if options.TrustedKeys, err = wasmkiln.ReadKeys(*key); err != nil {
			return err
		}
	}
	if text, err := os.ReadFile(*ca); err == nil {
		options.TLS = &tls.Config{RootCAs: x509.NewCertPool()}
		options.TLS.RootCAs.AppendCertsFromPEM(text)
	}
	client, err := wasmkiln.New(address, options)
	if err != nil {
		return err
	}
	defer client.Close()
	asked := wasmkiln.CompileOptions{Engine: *engine, Background: *load != ""}
	if *load != "" {
		loaded, err := client.Load(ctx, module, asked)
		if err == nil {
			say("loaded", "", loaded.GetEngine(), "", loaded.GetSha256())
		}
		return err
	}
	var artifact *wasmkiln.Artifact
	if *digest != "" {
		artifact, err = client.CompileDigest(ctx, *digest, asked)
	} else {
		artifact, err = client.Compile(ctx, module, asked)
	}
	if err != nil {
		return err
	}
	defer artifact.Close()
	if *pause == "file" {
		fmt.Println("opened")
		_, _ = input.ReadString('\n')
	}
	content, err := artifact.Bytes()
	if err = errors.Join(err, artifact.CheckUnchanged()); err != nil {
		return err
	}
	origin := artifact.Header.GetOrigin().String()
	if artifact.Path() != "" {
		origin = "FILE"
	}
	say("compiled", origin, artifact.Header.GetEngine().GetId(), fmt.Sprint(len(content)), artifact.Header.GetModuleSha256())
	if *out != "" {
		return os.WriteFile(*out, content, 0o644)
	}
	return nil
}

func say(columns ...string) {
	fmt.Println(strings.ReplaceAll(strings.Join(columns, "\t"), "\n", " "))
}
