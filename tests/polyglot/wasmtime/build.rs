//! Links the library of the folder `WASMTIME_LIBRARY`, which cargo then finds for its programs.
use std::{env, os::unix::fs::symlink, path::Path};

fn main() {
    let library = Path::new(&env::var("WASMTIME_LIBRARY").unwrap()).join("_libwasmtime.so");
    let (folder, link) = (env::var("OUT_DIR").unwrap(), "libwasmtime.so");
    let _ = std::fs::remove_file(Path::new(&folder).join(link));
    symlink(library, Path::new(&folder).join(link)).unwrap();
    println!("cargo:rustc-link-search=native={folder}");
    println!("cargo:rerun-if-env-changed=WASMTIME_LIBRARY");
}
