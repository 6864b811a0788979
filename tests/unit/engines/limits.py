"""Limits that are small enough for a test to pass them."""

from wasmkilnd.model import Limits

LIMITS = Limits(
    module_bytes=100,
    artifact_bytes=1000,
    compile_timeout_s=30,
    compile_cpu_s=60,
    compile_memory_bytes=1_000_000,
    queue_length=1,
    queue_bytes=1,
)
