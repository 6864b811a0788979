package wasmkiln

import (
	"bytes"

	pb "github.com/wasmkiln/wasmkiln/client/go/wasmkilnpb"
)

// Settings that artifacts of earlier daemons do not state, and what these artifacts have.
var unstated = map[string]string{"strategy": "cranelift", "compiler": "cranelift", "collector": "drc"}

// The setting and the value that choose an engine's fast compiler.
var fastCompilers = map[string][2]string{
	"wasmtime": {"strategy", "winch"},
	"wasmer":   {"compiler", "singlepass"},
}

// A module's first eight bytes: magic number, version, and layer, which marks a component.
var (
	corePreamble      = []byte("\x00asm\x01\x00\x00\x00")
	componentPreamble = []byte("\x00asm\x0d\x00\x01\x00")
)

// checkHeader returns an error unless a header is about what the request asked for. A signature
// binds an artifact to its header, and not to the call: whoever sits in between could answer with
// an artifact that counts no fuel.
func checkHeader(request *pb.CompileRequest, digest string, module []byte, header *pb.ArtifactHeader) error {
	differs := func(what, asked, got string) error {
		return mismatch("asked for %s %.200q, got %.200q", what, asked, got)
	}
	if header.GetModuleSha256() != digest {
		return differs("an artifact of module", digest, header.GetModuleSha256())
	}
	engine := header.GetEngine()
	full := engine.GetName() + "-" + engine.GetVersion()
	if asked := request.GetEngine(); asked != "" && asked != engine.GetName() && asked != full {
		return differs("engine", asked, full)
	}
	if engine.GetId() != full {
		return mismatch("the header calls the engine %.200q %.200q", full, engine.GetId())
	}
	if asked := request.GetTarget(); asked != "" && asked != header.GetTarget() {
		return differs("target", asked, header.GetTarget())
	}
	if asked := request.GetCpu(); asked != "" && asked != header.GetCpu() {
		return differs("cpu", asked, header.GetCpu())
	}
	asked := request.GetSettings()
	for name, value := range asked {
		got, stated := header.GetSettings()[name]
		if !stated {
			got = unstated[name]
		}
		if got != value {
			return differs("setting "+name, value, got)
		}
	}
	// A setting that the call did not name has to have the engine's default.
	for name, value := range header.GetChangedSettings() {
		if wanted, named := asked[name]; !named || wanted != value {
			return mismatch("asked for setting %.200q as the engine has it, got %.200q", name, value)
		}
	}
	if kind := kindOf(module); kind != pb.Kind_KIND_UNSPECIFIED && kind != header.GetKind() {
		return mismatch("asked for an artifact of kind %v, got one of kind %v", kind, header.GetKind())
	}
	switch {
	case header.GetHostFile() != nil && !request.GetAcceptHostFile():
		return mismatch("asked for the artifact's bytes, got a file's name")
	case len(header.GetInlineArtifact()) > int(request.GetInlineLimitBytes()):
		return mismatch("asked for at most %d bytes in the header, got %d",
			request.GetInlineLimitBytes(), len(header.GetInlineArtifact()))
	case header.GetContentEncoding() != "":
		return mismatch("got bytes in an encoding that was not asked for: %.200q", header.GetContentEncoding())
	}
	compiler := fastCompilers[engine.GetName()]
	made := compiler[0] != "" && header.GetChangedSettings()[compiler[0]] == compiler[1]
	if header.GetIsFast() != made {
		return mismatch("the header says is_fast=%t, and its settings the opposite", header.GetIsFast())
	}
	return nil
}

func kindOf(module []byte) pb.Kind {
	switch {
	case bytes.HasPrefix(module, corePreamble):
		return pb.Kind_KIND_CORE_MODULE
	case bytes.HasPrefix(module, componentPreamble):
		return pb.Kind_KIND_COMPONENT
	}
	return pb.Kind_KIND_UNSPECIFIED
}
