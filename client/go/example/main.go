// Command example compiles a module twice, shows an error, and writes the artifact to a file:
//
//	example ADDRESS MODULE.wasm --key KEY.pem --engine ID --out FILE
package main

import (
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"flag"
	"fmt"
	"os"

	wasmkiln "github.com/wasmkiln/wasmkiln/client/go"
	pb "github.com/wasmkiln/wasmkiln/client/go/wasmkilnpb"
)

func main() {
	if err := run(); err != nil {
		var failure *wasmkiln.Error
		if errors.As(err, &failure) {
			fmt.Printf("go error %s: %s\n", failure.Reason, failure.Message)
		} else {
			fmt.Println("go error:", err)
		}
		os.Exit(1)
	}
}

func run() error {
	flags := flag.NewFlagSet("example", flag.ExitOnError)
	key := flags.String("key", "", "file or folder of trusted public keys")
	engine := flags.String("engine", "", "the engine's id or name")
	out := flags.String("out", "", "where to write the artifact")
	ca := flags.String("ca", "", "file of the CA for TLS")
	token := flags.String("token-file", "", "file of a token")
	noStore := flags.Bool("no-host-store", false, "take bytes, and no file of the host store")
	byDigest := flags.String("digest", "", "compile by this SHA-256 instead of the module")
	if len(os.Args) < 3 {
		return errors.New("usage: example ADDRESS MODULE.wasm [--key KEY.pem] [--engine ID] [--out FILE]")
	}
	if err := flags.Parse(os.Args[3:]); err != nil {
		return err
	}
	module, err := os.ReadFile(os.Args[2])
	if err != nil {
		return err
	}
	options := wasmkiln.Options{TokenFile: *token, NoHostStore: *noStore}
	var keys []ed25519.PublicKey
	if *key != "" {
		if keys, err = wasmkiln.ReadKeys(*key); err != nil {
			return err
		}
		options.TrustedKeys = keys
	}
	if *ca != "" {
		text, err := os.ReadFile(*ca)
		if err != nil {
			return err
		}
		roots := x509.NewCertPool()
		roots.AppendCertsFromPEM(text)
		options.TLS = &tls.Config{RootCAs: roots}
	}
	client, err := wasmkiln.New(os.Args[1], options)
	if err != nil {
		return err
	}
	defer client.Close()

	ctx := context.Background()
	asked := wasmkiln.CompileOptions{Engine: *engine}
	if *byDigest != "" {
		artifact, err := client.CompileDigest(ctx, *byDigest, asked)
		if err != nil {
			return err
		}
		return show(artifact, "")
	}
	for range 2 {
		artifact, err := client.Compile(ctx, module, asked)
		if err != nil {
			return err
		}
		if err := show(artifact, *out); err != nil {
			return err
		}
	}
	_, err = client.Compile(ctx, []byte("\x00asm\x01\x00\x00\x00\xff"), asked)
	var failure *wasmkiln.Error
	if !errors.As(err, &failure) {
		return fmt.Errorf("expected an error of a module that is none, got %w", err)
	}
	fmt.Printf("go error %s: %s\n", failure.Reason, failure.Message)
	return nil
}

var origins = map[pb.Origin]string{
	pb.Origin_ORIGIN_MEMORY: "memory", pb.Origin_ORIGIN_REDIS: "redis",
	pb.Origin_ORIGIN_COMPILED: "compiled", pb.Origin_ORIGIN_JOINED_FLIGHT: "joined_flight",
	pb.Origin_ORIGIN_HOST_STORE: "host_store",
}

func show(artifact *wasmkiln.Artifact, out string) error {
	defer artifact.Close()
	content, err := artifact.Bytes()
	if err != nil {
		return err
	}
	origin := origins[artifact.Header.GetOrigin()]
	if artifact.Path() != "" {
		origin += ", a file of the host store"
	}
	fmt.Printf("go compiled sha256:%s with %s, %d bytes, from %s\n",
		artifact.Header.GetModuleSha256(), artifact.Header.GetEngine().GetId(), len(content), origin)
	if out == "" {
		return nil
	}
	return os.WriteFile(out, content, 0o644)
}
