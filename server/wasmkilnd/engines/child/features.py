"""One tiny module for each WebAssembly proposal: an engine that validates it has the proposal.

Each value is a binary module without its preamble, in hexadecimal, made from the text above it.
"""

from __future__ import annotations

CORE_PREAMBLE = b"\0asm\x01\0\0\0"

# (func (export "add") (param i32 i32) (result i32) local.get 0 local.get 1 i32.add)
ADDER = CORE_PREAMBLE + bytes.fromhex(
    "01070160027f7f017f030201000707010361646400000a09010700200020016a0b"
)

CORE_PROPOSALS = {
    # (global (export "g") (mut i32) (i32.const 0))
    "mutable-globals": "0606017f0141000b07050101670300",
    # (func (param i32) (result i32) local.get 0 i32.extend8_s)
    "sign-extension": "01060160017f017f030201000a070105002000c00b",
    # (func (param f32) (result i32) local.get 0 i32.trunc_sat_f32_s)
    "saturating-float-to-int": "01060160017d017f030201000a080106002000fc000b",
    # (func (result i32 i32) i32.const 0 i32.const 1)
    "multi-value": "0106016000027f7f030201000a08010600410041010b",
    # (memory 1) (func i32.const 0 i32.const 0 i32.const 0 memory.copy)
    "bulk-memory": "0104016000000302010005030100010a0e010c00410041004100fc0a00000b",
    # (func (param externref) (result externref) local.get 0)
    "reference-types": "01060160016f016f030201000a0601040020000b",
    # (func (result v128) v128.const i32x4 0 0 0 0)
    "simd": "0105016000017b030201000a16011400fd0c000000000000000000000000000000000b",
    # (func (param v128 v128) (result v128) local.get 0 local.get 1 i8x16.relaxed_swizzle)
    "relaxed-simd": "01070160027b7b017b030201000a0b01090020002001fd80020b",
    # (func $f return_call $f)
    "tail-call": "010401600000030201000a0601040012000b",
    # (global i32 (i32.add (i32.const 1) (i32.const 2)))
    "extended-const": "0609017f00410141026a0b",
    # (memory 1 1 shared) (func (result i32) i32.const 0 i32.atomic.load)
    "threads": "0105016000017f030201000504010301010a0a0108004100fe1002000b",
    # (memory 1) (memory 1)
    "multi-memory": "05050200010001",
    # (memory i64 1)
    "memory64": "0503010401",
    # (tag $t) (func (block $b (try_table (catch $t $b) throw $t)))
    "exception-handling": "010401600000030201000d030100000a10010e0002401f400100000008000b0b0b",
    # (type $t (func)) (func (param (ref $t)) local.get 0 call_ref $t)
    "function-references": "0109026000006001640000030201010a08010600200014000b",
    # (type $s (struct (field i32))) (func (result (ref $s)) i32.const 0 struct.new $s)
    "gc": "010a025f017f006000016400030201010a090107004100fb00000b",
    # (func (param i64 i64 i64 i64) (result i64 i64) local.get 0..3 i64.add128)
    "wide-arithmetic": "010a0160047e7e7e7e027e7e030201000a0e010c002000200120022003fc130b",
    # (memory 1 (pagesize 1))
    "custom-page-sizes": "050401080100",
    # (type $f (func)) (type $c (cont $f)) (func (param (ref $f)) (result (ref $c)) ... cont.new $c)
    "stack-switching": "010d036000005d0060016400016401030201020a080106002000e0010b",
}
