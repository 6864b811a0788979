// Package wasmkiln is a client of a wasmkiln daemon, which compiles WebAssembly modules once and
// serves the native code to every service.
//
//	client, err := wasmkiln.New("127.0.0.1:50051", wasmkiln.Options{TrustedKeys: keys})
//	artifact, err := client.Compile(ctx, module, wasmkiln.CompileOptions{Engine: "wasmtime"})
//
// Compile asks by the module's SHA-256 first and uploads the module only if the daemon lacks it.
// An artifact that Compile returns is the one that its header describes: size and SHA-256 were
// checked, the header was compared with the call and, where the client has trusted keys, one of
// them signed it. Without trusted keys no signature is checked, and loading an artifact is running
// its code.
//
// On the daemon's own machine Compile takes a file of the daemon's host store instead of bytes, if
// it may trust the file: see Options.NoHostStore.
//
// Errors are of type *Error. They say a reason, by which a caller decides:
//
//	if errors.Is(err, wasmkiln.ErrModuleInvalid) { … }
//
// The client retries nothing by itself, apart from the upload and from asking for bytes where it
// cannot use a file.
package wasmkiln
