/* Run a function of an artifact with wasmtime's C library:
 *
 *   cc wasmtime.c -o host -L FOLDER -l:_libwasmtime.so -Wl,-rpath,FOLDER
 *   ./host FILE [--set NAME=VALUE]... FUNCTION NUMBER...
 *
 * FOLDER holds the library of PyPI's wasmtime package (site-packages/wasmtime/linux-x86_64). With
 * wasmtime's own C package: -DWASMTIME_HEADERS -I INCLUDE -L LIB -lwasmtime.
 *
 * The library's major version has to be that of the engine that compiled the artifact, and its
 * settings the header's changed_settings: give each as --set. Loading an artifact is running its
 * code: verify it first, or take it from a client that did. */
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifdef WASMTIME_HEADERS
#include <wasmtime.h>
#else
/* What this program needs of wasmtime.h, as it is in versions 49 and 50. */
typedef struct { size_t size; char *data; } wasm_byte_vec_t;
typedef struct wasm_config_t wasm_config_t;
typedef struct wasm_engine_t wasm_engine_t;
typedef struct wasm_trap_t wasm_trap_t;
typedef struct wasmtime_error wasmtime_error_t;
typedef struct wasmtime_module wasmtime_module_t;
typedef struct wasmtime_store wasmtime_store_t;
typedef struct wasmtime_context wasmtime_context_t;
typedef struct { uint64_t store_id; void *private_; } wasmtime_func_t;
typedef struct { uint64_t store_id; size_t private_; } wasmtime_instance_t;
typedef struct {
  uint8_t kind;
  union { wasmtime_func_t func; struct { uint64_t a, b; uint32_t c; } room; } of;
} wasmtime_extern_t;
typedef struct {
  uint8_t kind;
  union { int32_t i32; struct { uint64_t a; uint32_t b, c; void *d; } room; } of;
} wasmtime_val_t;
enum { WASMTIME_I32 = 0, WASMTIME_EXTERN_FUNC = 0 };

wasm_config_t *wasm_config_new(void);
wasm_engine_t *wasm_engine_new_with_config(wasm_config_t *);
void wasm_engine_delete(wasm_engine_t *);
void wasmtime_config_consume_fuel_set(wasm_config_t *, bool);
void wasmtime_config_epoch_interruption_set(wasm_config_t *, bool);
void wasmtime_config_gc_support_set(wasm_config_t *, bool);
void wasmtime_config_strategy_set(wasm_config_t *, uint8_t);
wasmtime_error_t *wasmtime_config_target_set(wasm_config_t *, const char *);
wasmtime_error_t *wasmtime_context_set_fuel(wasmtime_context_t *, uint64_t);
void wasmtime_context_set_epoch_deadline(wasmtime_context_t *, uint64_t);
wasmtime_error_t *wasmtime_module_deserialize_file(
    wasm_engine_t *, const char *, wasmtime_module_t **);
void wasmtime_module_delete(wasmtime_module_t *);
wasmtime_store_t *wasmtime_store_new(wasm_engine_t *, void *, void (*)(void *));
void wasmtime_store_delete(wasmtime_store_t *);
wasmtime_context_t *wasmtime_store_context(wasmtime_store_t *);
wasmtime_error_t *wasmtime_instance_new(wasmtime_context_t *, const wasmtime_module_t *,
    const wasmtime_extern_t *, size_t, wasmtime_instance_t *, wasm_trap_t **);
bool wasmtime_instance_export_get(wasmtime_context_t *, const wasmtime_instance_t *,
    const char *, size_t, wasmtime_extern_t *);
wasmtime_error_t *wasmtime_func_call(wasmtime_context_t *, const wasmtime_func_t *,
    const wasmtime_val_t *, size_t, wasmtime_val_t *, size_t, wasm_trap_t **);
void wasmtime_error_message(const wasmtime_error_t *, wasm_byte_vec_t *);
void wasm_trap_message(const wasm_trap_t *, wasm_byte_vec_t *);
#endif

enum { MOST_NUMBERS = 8 };

static void check(const char *what, wasmtime_error_t *error, wasm_trap_t *trap) {
  if (!error && !trap) return;
  wasm_byte_vec_t message;
  if (error) wasmtime_error_message(error, &message);
  else wasm_trap_message(trap, &message);
  fprintf(stderr, "c host: %s: %.*s\n", what, (int)message.size, message.data);
  exit(1);
}

/* Apply one of changed_settings, or a target. Those that are not here have a function of the same
   name. */
static void set(wasm_config_t *config, const char *setting) {
  if (!strcmp(setting, "collector=none") || !strcmp(setting, "gc_support=false")) {
    wasmtime_config_gc_support_set(config, false);
  } else if (!strcmp(setting, "consume_fuel=true")) {
    wasmtime_config_consume_fuel_set(config, true);
  } else if (!strcmp(setting, "epoch_interruption=true")) {
    wasmtime_config_epoch_interruption_set(config, true);
  } else if (!strcmp(setting, "strategy=winch")) {
    wasmtime_config_strategy_set(config, 2);
  } else if (!strcmp(setting, "target=pulley64")) {
    check("cannot set the target", wasmtime_config_target_set(config, "pulley64"), NULL);
  } else {
    fprintf(stderr, "c host: cannot apply %s: this program does not know it\n", setting);
    exit(2);
  }
}

int main(int argc, char **argv) {
  wasm_config_t *config = wasm_config_new();
  bool fuel = false, epoch = false;
  int at = 2;
  for (; at + 1 < argc && !strcmp(argv[at], "--set"); at += 2) {
    set(config, argv[at + 1]);
    fuel |= !strcmp(argv[at + 1], "consume_fuel=true");
    epoch |= !strcmp(argv[at + 1], "epoch_interruption=true");
  }
  int count = argc - at - 1;
  if (count < 0 || count > MOST_NUMBERS) {
    fprintf(stderr, "usage: host FILE [--set NAME=VALUE]... FUNCTION NUMBER...\n");
    return 2;
  }

  wasm_engine_t *engine = wasm_engine_new_with_config(config);
  wasmtime_module_t *module = NULL;
  check("cannot load the artifact", wasmtime_module_deserialize_file(engine, argv[1], &module),
        NULL);
  wasmtime_store_t *store = wasmtime_store_new(engine, NULL, NULL);
  wasmtime_context_t *context = wasmtime_store_context(store);
  if (fuel) check("no fuel", wasmtime_context_set_fuel(context, UINT64_MAX), NULL);
  if (epoch) wasmtime_context_set_epoch_deadline(context, 1);

  wasmtime_instance_t instance;
  wasm_trap_t *trap = NULL;
  wasmtime_error_t *error = wasmtime_instance_new(context, module, NULL, 0, &instance, &trap);
  check("cannot make an instance", error, trap);
  wasmtime_extern_t export;
  const char *name = argv[at];
  if (!wasmtime_instance_export_get(context, &instance, name, strlen(name), &export) ||
      export.kind != WASMTIME_EXTERN_FUNC) {
    fprintf(stderr, "c host: the module exports no function %s\n", name);
    return 1;
  }
  wasmtime_val_t numbers[MOST_NUMBERS], result;
  for (int i = 0; i < count; i++) {
    numbers[i].kind = WASMTIME_I32;
    numbers[i].of.i32 = (int32_t)strtol(argv[at + 1 + i], NULL, 10);
  }
  error = wasmtime_func_call(context, &export.of.func, numbers, count, &result, 1, &trap);
  check("the call failed", error, trap);
  printf("%d\n", result.of.i32);

  wasmtime_store_delete(store);
  wasmtime_module_delete(module);
  wasm_engine_delete(engine);
  return 0;
}
