"""The settings of wasmtime that the daemon offers, if the installed version has them."""

from __future__ import annotations

BOOL = ["false", "true"]

STRATEGY = "strategy"
# The values of wasmtime_strategy_enum in wasmtime/config.h.
STRATEGIES = {"cranelift": 1, "winch": 2}

COLLECTOR = "collector"
# The collectors, by the numbers that artifacts have for them, and as the command's -C collector
# calls them.
COLLECTORS = ("drc", "null", "copying")
NO_COLLECTOR = "none"

# The attributes of wasmtime.Config that change an artifact or decide which hosts can load it.
# Those that only change how this process works (cache, profiler, parallel_compilation,
# max_wasm_stack, memory_init_cow, mach ports) are left out on purpose, and so is debug_info,
# which puts paths and sources into artifacts.
SETTINGS = {
    STRATEGY: (
        list(STRATEGIES),
        "The compiler. Winch takes a fifth of cranelift's time, and its code runs slower; it lacks"
        " some proposals. A host needs an engine with the same strategy.",
    ),
    "cranelift_opt_level": (
        ["none", "speed", "speed_and_size"],
        "How hard the compiler tries.",
    ),
    "cranelift_nan_canonicalization": (BOOL, "One NaN for all, for deterministic floats."),
    "consume_fuel": (BOOL, "Code counts fuel, and stops when it is used up."),
    "epoch_interruption": (BOOL, "Code can be interrupted by raising the engine's epoch."),
    COLLECTOR: (
        [*COLLECTORS, NO_COLLECTOR],
        "The garbage collector that the code is for: a host with another one refuses it."
        " Code for none loads with any, and cannot use collected types; gc_support=false"
        " means the same.",
    ),
    "gc_support": (BOOL, "Whether the garbage collector is there at all."),
    "signals_based_traps": (BOOL, "Traps by signal handlers rather than by explicit checks."),
    "native_unwind_info": (BOOL, "Whether unwind tables are part of the artifact."),
    "memory_may_move": (BOOL, "Whether linear memories may move when they grow."),
    "memory_reservation": (
        ["0", "4294967296"],
        "Virtual memory reserved for each linear memory, bytes.",
    ),
    "memory_guard_size": (
        ["0", "65536", "33554432"],
        "Guard region behind each linear memory, bytes.",
    ),
    "shared_memory": (BOOL, "Whether shared memories can be created."),
}
PROPOSAL_DESCRIPTION = "Whether modules may use this proposal."
