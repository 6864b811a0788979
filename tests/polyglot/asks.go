// Asks a daemon for a module as the flags say, and prints what came:
//
//	asks ADDRESS MODULE.wasm --key KEY.pem --engine ID --out FILE
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"

	wasmkiln "github.com/wasmkiln/wasmkiln/client/go"
)

func main() {
	if err := run(os.Args[1], os.Args[2], os.Args[3:]); err != nil {
		var failure *wasmkiln.Error
		if errors.As(err, &failure) {
			err = fmt.Errorf("%s: %w", failure.Reason, err)
		}
		fmt.Println("go error", err)
		os.Exit(1)
	}
}

func run(address, path string, words []string) error {
	flags := flag.NewFlagSet("asks", flag.ExitOnError)
	key := flags.String("key", "", "file or folder of trusted public keys")
	engine := flags.String("engine", "", "the engine's id or name")
	out := flags.String("out", "", "where to write the artifact")
	ca := flags.String("ca", "", "file of the CA for TLS")
	token := flags.String("token-file", "", "file of a token")
	noStore := flags.Bool("no-host-store", false, "take bytes, and no file of the host store")
	digest := flags.String("digest", "", "compile by this SHA-256 instead of the module")
	times := flags.Int("times", 1, "how often to ask")
	if err := flags.Parse(words); err != nil {
		return err
	}
	module, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	options := wasmkiln.Options{TokenFile: *token, NoHostStore: *noStore}
	if *key != "" {
		if options.TrustedKeys, err = wasmkiln.ReadKeys(*key); err != nil {
			return err
		}
	}
	if *ca != "" {
		text, err := os.ReadFile(*ca)
		if err != nil {
			return err
		}
		options.TLS = &tls.Config{RootCAs: x509.NewCertPool()}
		options.TLS.RootCAs.AppendCertsFromPEM(text)
	}
	client, err := wasmkiln.New(address, options)
	if err != nil {
		return err
	}
	defer client.Close()
	for time := 0; time < *times; time++ {
		asked := wasmkiln.CompileOptions{Engine: *engine}
		artifact, err := client.Compile(context.Background(), module, asked)
		if *digest != "" {
			artifact, err = client.CompileDigest(context.Background(), *digest, asked)
		}
		if err != nil {
			return err
		}
		if err := show(artifact, *out); err != nil {
			return err
		}
	}
	return nil
}

func show(artifact *wasmkiln.Artifact, out string) error {
	defer artifact.Close()
	content, err := artifact.Bytes()
	if err != nil {
		return err
	}
	origin := strings.ToLower(strings.TrimPrefix(artifact.Header.GetOrigin().String(), "ORIGIN_"))
	if artifact.Path() != "" {
		origin += ", a file of the host store"
	}
	fmt.Printf("go compiled sha256:%s with %s, %d bytes, from %s\n",
		artifact.Header.GetModuleSha256(), artifact.Header.GetEngine().GetId(), len(content), origin)
	if out == "" {
		return nil
	}
	return errors.Join(os.WriteFile(out, content, 0o644), artifact.CheckUnchanged())
}
