// What Asks.java does, in Go.
package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	wasmkiln "github.com/wasmkiln/wasmkiln/client/go"
	"github.com/wasmkiln/wasmkiln/client/go/wasmkilnpb"
)

var (
	flags = map[string]string{"--timeout-ms": "60000", "--times": "1"}
	input = bufio.NewReader(os.Stdin)
)

func main() {
	for at := 3; at+1 < len(os.Args); at += 2 {
		flags[os.Args[at]] = os.Args[at+1]
	}
	ctx, cancel := context.WithCancel(context.Background())
	if flags["--pause"] == "call" {
		go func() {
			_, _ = input.ReadString('\n')
			cancel()
		}()
	}
	for times, _ := strconv.Atoi(flags["--times"]); times > 0; times-- {
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
	options := wasmkiln.Options{TokenFile: flags["--token-file"], NoHostStore: flags["--store"] == ""}
	options.Timeout, _ = time.ParseDuration(flags["--timeout-ms"] + "ms")
	if key := flags["--key"]; key != "" {
		if options.TrustedKeys, err = wasmkiln.ReadKeys(key); err != nil {
			return err
		}
	}
	if text, err := os.ReadFile(flags["--ca"]); err == nil {
		options.TLS = &tls.Config{RootCAs: x509.NewCertPool()}
		options.TLS.RootCAs.AppendCertsFromPEM(text)
	}
	client, err := wasmkiln.New(address, options)
	if err != nil {
		return err
	}
	defer client.Close()
	asked := wasmkiln.CompileOptions{Engine: flags["--engine"], Background: flags["--load"] != ""}
	asked.AcceptFast, asked.SkipCacheLookup = flags["--accept-fast"] != "", flags["--fresh"] != ""
	if asked.Background {
		loaded, err := client.Load(ctx, module, asked)
		if err == nil {
			say("loaded", "", loaded.GetEngine(), "", loaded.GetSha256())
		}
		return err
	}
	if file := flags["--compatibility"]; file != "" {
		if asked.Compatibility, err = os.ReadFile(file); err != nil {
			panic(err)
		}
	}
	if digest := flags["--missing"]; digest != "" {
		keys := []*wasmkilnpb.ArtifactKey{{ModuleSha256: digest, Engine: asked.Engine}}
		missing, err := client.FindMissing(ctx, keys)
		if err == nil {
			say("missing", "", "", fmt.Sprint(len(missing)), "")
		}
		return err
	}
	var artifact *wasmkiln.Artifact
	if digest := flags["--digest"]; digest != "" {
		artifact, err = client.CompileDigest(ctx, digest, asked)
	} else {
		artifact, err = client.Compile(ctx, module, asked)
	}
	if err != nil {
		return err
	}
	defer artifact.Close()
	if flags["--pause"] == "file" {
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
	if out := flags["--out"]; out != "" {
		return os.WriteFile(out, content, 0o644)
	}
	return nil
}

func say(columns ...string) {
	fmt.Println(strings.ReplaceAll(strings.Join(columns, "\t"), "\n", " "))
}
