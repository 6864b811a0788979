//go:build cgo && wasmtime

// Command wasmtime runs a function of an artifact by wasmtime's C library:
//
//	CGO_LDFLAGS="-L$FOLDER -l:_libwasmtime.so -Wl,-rpath,$FOLDER" go build -tags wasmtime
//	wasmtime FILE FUNCTION NUMBER…
//
// FOLDER is one with the library: that of the release, or linux-x86_64 in PyPI's wasmtime package.
// The declarations below are those of wasmtime.h 49 and 50 that this program needs; with the
// release's own headers, include <wasmtime.h> instead. The library's major version has to be that
// of the engine which compiled the artifact, and the settings of wasm_config_t the same.
package main

/*
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

typedef struct { size_t size; char *data; } wasm_byte_vec_t;
typedef struct wasm_config_t wasm_config_t;
typedef struct wasm_engine_t wasm_engine_t;
typedef struct wasm_trap_t wasm_trap_t;
typedef struct wasmtime_error wasmtime_error_t;
typedef struct wasmtime_module wasmtime_module_t;
typedef struct wasmtime_store wasmtime_store_t;
typedef struct wasmtime_context wasmtime_context_t;
typedef struct { uint64_t store_id; void *private; } wasmtime_func_t;
typedef struct { uint64_t store_id; size_t private; } wasmtime_instance_t;
// The room is for the unions' larger members: neither is smaller than in the library.
typedef struct {
  uint8_t kind;
  union { wasmtime_func_t func; uint64_t room[3]; } of;
} wasmtime_extern_t;
typedef struct {
  uint8_t kind;
  union { int32_t i32; uint64_t room[3]; } of;
} wasmtime_val_t;

wasm_config_t *wasm_config_new(void);
wasm_engine_t *wasm_engine_new_with_config(wasm_config_t *);
void wasm_engine_delete(wasm_engine_t *);
wasmtime_error_t *wasmtime_module_deserialize_file(
    wasm_engine_t *, const char *, wasmtime_module_t **);
void wasmtime_module_delete(wasmtime_module_t *);
wasmtime_store_t *wasmtime_store_new(wasm_engine_t *, void *, void (*)(void *));
void wasmtime_store_delete(wasmtime_store_t *);
wasmtime_context_t *wasmtime_store_context(wasmtime_store_t *);
wasmtime_error_t *wasmtime_instance_new(
    wasmtime_context_t *, const wasmtime_module_t *, const wasmtime_extern_t *, size_t,
    wasmtime_instance_t *, wasm_trap_t **);
bool wasmtime_instance_export_get(
    wasmtime_context_t *, const wasmtime_instance_t *, const char *, size_t, wasmtime_extern_t *);
wasmtime_error_t *wasmtime_func_call(
    wasmtime_context_t *, const wasmtime_func_t *, const wasmtime_val_t *, size_t,
    wasmtime_val_t *, size_t, wasm_trap_t **);
void wasmtime_error_message(const wasmtime_error_t *, wasm_byte_vec_t *);
void wasm_trap_message(const wasm_trap_t *, wasm_byte_vec_t *);

// Go has no unions.
static wasmtime_func_t func_of(const wasmtime_extern_t *found) { return found->of.func; }
static int32_t number_of(const wasmtime_val_t *value) { return value->of.i32; }
static void set_number(wasmtime_val_t *value, int32_t number) {
  value->kind = 0;
  value->of.i32 = number;
}
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

func run(words []string) error {
	if len(words) < 2 {
		return errors.New("usage: wasmtime FILE FUNCTION NUMBER…")
	}
	name, numbers := words[1], words[2:]
	values := make([]C.wasmtime_val_t, len(numbers)+1) // one more, so that there is a first
	for i, word := range numbers {
		number, err := strconv.ParseInt(word, 10, 32)
		if err != nil {
			return err
		}
		C.set_number(&values[i], C.int32_t(number))
	}

	// Settings of the artifact belong into the configuration: ArtifactHeader.changed_settings.
	engine := C.wasm_engine_new_with_config(C.wasm_config_new())
	defer C.wasm_engine_delete(engine)
	path := C.CString(words[0])
	defer C.free(unsafe.Pointer(path))
	var module *C.wasmtime_module_t
	if err := C.wasmtime_module_deserialize_file(engine, path, &module); err != nil {
		return failed("cannot load the artifact", err, nil)
	}
	defer C.wasmtime_module_delete(module)
	store := C.wasmtime_store_new(engine, nil, nil)
	defer C.wasmtime_store_delete(store)
	context := C.wasmtime_store_context(store)

	var instance C.wasmtime_instance_t
	var trap *C.wasm_trap_t
	err := C.wasmtime_instance_new(context, module, nil, 0, &instance, &trap)
	if err != nil || trap != nil {
		return failed("cannot make an instance", err, trap)
	}
	text := C.CString(name)
	defer C.free(unsafe.Pointer(text))
	var found C.wasmtime_extern_t
	if !C.wasmtime_instance_export_get(context, &instance, text, C.size_t(len(name)), &found) ||
		found.kind != 0 {
		return fmt.Errorf("the module exports no function %s", name)
	}
	function := C.func_of(&found)
	var result C.wasmtime_val_t
	err = C.wasmtime_func_call(
		context, &function, &values[0], C.size_t(len(numbers)), &result, 1, &trap)
	if err != nil || trap != nil {
		return failed("the call failed", err, trap)
	}
	fmt.Printf("go host ran %s%v = %d\n", name, numbers, C.number_of(&result))
	return nil
}

func failed(what string, err *C.wasmtime_error_t, trap *C.wasm_trap_t) error {
	var text C.wasm_byte_vec_t
	if err != nil {
		C.wasmtime_error_message(err, &text)
	} else {
		C.wasm_trap_message(trap, &text)
	}
	return fmt.Errorf("%s: %s", what, C.GoStringN(text.data, C.int(text.size)))
}
