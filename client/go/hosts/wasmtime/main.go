//go:build cgo && wasmtime

// Command wasmtime runs a function of an artifact by wasmtime's C library:
//
//	CGO_LDFLAGS="-L$FOLDER -l:_libwasmtime.so -Wl,-rpath,$FOLDER" go build -tags wasmtime
//	wasmtime FILE FUNCTION NUMBER…
//
// FOLDER is one with the library: that of the release, or linux-x86_64 in PyPI's wasmtime package.
// The declarations below are those of wasmtime.h 49 and 50 that this program needs, with pointers
// of one type; with the release's own headers, include <wasmtime.h> instead. The library's major
// version has to be that of the engine which compiled the artifact, and the settings of its engine
// those of the artifact: ArtifactHeader.changed_settings.
package main

/*
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>

typedef struct { size_t size; char *data; } wasm_byte_vec_t;
// wasmtime_extern_t and wasmtime_val_t: what it is (0: a function, an i32), and then the thing.
typedef struct { uint64_t kind, of[3]; } item;
typedef struct { uint64_t of[2]; } instance;

void *wasm_engine_new(void);
void *wasmtime_module_deserialize_file(void *engine, const char *path, void **module);
void *wasmtime_store_new(void *engine, void *data, void (*finalizer)(void *));
void *wasmtime_store_context(void *store);
void *wasmtime_instance_new(
    void *context, void *module, const item *imports, size_t, instance *, void **trap);
bool wasmtime_instance_export_get(void *context, instance *, const char *name, size_t, item *);
void *wasmtime_func_call(void *context, const void *function, const item *arguments, size_t,
    item *results, size_t, void **trap);
void wasmtime_error_message(void *error, wasm_byte_vec_t *);
void wasm_trap_message(void *trap, wasm_byte_vec_t *);
*/
import "C"

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"unsafe"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "go host:", err)
		os.Exit(1)
	}
}

// run leaves it to the end of the process to free what the library made.
func run(words []string) error {
	if len(words) < 2 {
		return errors.New("usage: wasmtime FILE FUNCTION NUMBER…")
	}
	path, name, numbers := C.CString(words[0]), C.CString(words[1]), words[2:]
	values := make([]C.item, len(numbers)+1) // one more, so that there is a first
	for i, word := range numbers {
		number, err := strconv.ParseInt(word, 10, 32)
		if err != nil {
			return err
		}
		values[i].of[0] = C.uint64_t(uint32(number))
	}

	var module, trap unsafe.Pointer
	engine := C.wasm_engine_new()
	if err := C.wasmtime_module_deserialize_file(engine, path, &module); err != nil {
		return failed("cannot load the artifact", err, nil)
	}
	context := C.wasmtime_store_context(C.wasmtime_store_new(engine, nil, nil))
	var made C.instance
	if err := C.wasmtime_instance_new(context, module, nil, 0, &made, &trap); err != nil || trap != nil {
		return failed("cannot make an instance", err, trap)
	}
	var found, result C.item
	size := C.size_t(len(words[1]))
	if !C.wasmtime_instance_export_get(context, &made, name, size, &found) || found.kind&0xff != 0 {
		return fmt.Errorf("the module exports no function %s", words[1])
	}
	err := C.wasmtime_func_call(
		context, unsafe.Pointer(&found.of), &values[0], C.size_t(len(numbers)), &result, 1, &trap)
	if err != nil || trap != nil {
		return failed("the call failed", err, trap)
	}
	fmt.Printf("go host ran %s%v = %d\n", words[1], numbers, int32(result.of[0]))
	return nil
}

func failed(what string, err, trap unsafe.Pointer) error {
	var text C.wasm_byte_vec_t
	if err != nil {
		C.wasmtime_error_message(err, &text)
	} else {
		C.wasm_trap_message(trap, &text)
	}
	return fmt.Errorf("%s: %s", what, C.GoStringN(text.data, C.int(text.size)))
}
