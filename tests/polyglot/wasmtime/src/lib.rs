//! What the programs of our pages need of the crate `wasmtime`, under its names and signatures, by
//! the C library of a wheel: the crate itself does not build with Debian's crates.
//!
//! As there, an engine whose collector nobody named loads no code for the collector of the daemon's
//! defaults. The crate's own collector is `copying` then, and here it is none.
use std::ffi::{c_char, c_void, CString};
use std::marker::PhantomData;
use std::path::Path;
use std::ptr::null_mut;

pub struct Error(String);
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl<E: std::error::Error> From<E> for Error {
    fn from(error: E) -> Error {
        Error(error.to_string())
    }
}

impl From<Error> for Box<dyn std::error::Error> {
    fn from(error: Error) -> Self {
        error.0.into()
    }
}

impl std::fmt::Debug for Error {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str(&self.0)
    }
}

impl std::fmt::Display for Error {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str(&self.0)
    }
}

type Ptr = *mut c_void;

#[repr(C)]
struct Bytes(usize, *mut u8);

#[repr(C)]
#[derive(Clone, Copy)]
struct Func(u64, Ptr);

#[repr(C)]
struct Extern(u8, Func, [u64; 1]);

#[repr(C)]
#[derive(Clone, Copy)]
pub struct Value(u8, [u64; 3]);

#[link(name = "wasmtime")]
extern "C" {
    fn wasm_config_new() -> Ptr;
    fn wasm_engine_new_with_config(config: Ptr) -> Ptr;
    fn wasm_engine_delete(engine: Ptr);
    fn wasmtime_config_consume_fuel_set(config: Ptr, on: bool);
    fn wasmtime_config_gc_support_set(config: Ptr, on: bool);
    fn wasmtime_config_target_set(config: Ptr, target: *const c_char) -> Ptr;
    fn wasmtime_module_new(engine: Ptr, wasm: *const u8, size: usize, module: &mut Ptr) -> Ptr;
    fn wasmtime_module_serialize(module: Ptr, bytes: &mut Bytes) -> Ptr;
    fn wasmtime_module_deserialize(e: Ptr, code: *const u8, size: usize, m: &mut Ptr) -> Ptr;
    fn wasmtime_module_deserialize_file(e: Ptr, path: *const c_char, module: &mut Ptr) -> Ptr;
    fn wasmtime_module_delete(module: Ptr);
    fn wasmtime_component_deserialize_file(e: Ptr, path: *const c_char, c: &mut Ptr) -> Ptr;
    fn wasmtime_component_delete(component: Ptr);
    fn wasmtime_store_new(engine: Ptr, data: Ptr, finalizer: Ptr) -> Ptr;
    fn wasmtime_store_delete(store: Ptr);
    fn wasmtime_store_context(store: Ptr) -> Ptr;
    fn wasmtime_context_set_fuel(context: Ptr, fuel: u64) -> Ptr;
    fn wasmtime_instance_new(
        c: Ptr,
        m: Ptr,
        imports: Ptr,
        n: usize,
        i: &mut [u64; 2],
        trap: &mut Ptr,
    ) -> Ptr;
    fn wasmtime_instance_export_get(
        c: Ptr,
        i: &[u64; 2],
        name: *const u8,
        n: usize,
        e: &mut Extern,
    ) -> bool;
    fn wasmtime_func_call(
        c: Ptr,
        f: &Func,
        a: *const Value,
        n: usize,
        r: *mut Value,
        m: usize,
        trap: &mut Ptr,
    ) -> Ptr;
    fn wasmtime_error_message(error: Ptr, message: &mut Bytes);
    fn wasm_trap_message(trap: Ptr, message: &mut Bytes);
}

fn check(error: Ptr, trap: Ptr) -> Result<()> {
    let mut message = Bytes(0, null_mut());
    match (error.is_null(), trap.is_null()) {
        (true, true) => return Ok(()),
        (false, _) => unsafe { wasmtime_error_message(error, &mut message) },
        (_, false) => unsafe { wasm_trap_message(trap, &mut message) },
    }
    Err(Error(
        String::from_utf8_lossy(&message.to_vec()).into_owned(),
    ))
}

impl Bytes {
    fn to_vec(&self) -> Vec<u8> {
        unsafe { std::slice::from_raw_parts(self.1, self.0) }.to_vec()
    }
}

fn c_path(path: impl AsRef<Path>) -> Result<CString> {
    Ok(CString::new(path.as_ref().as_os_str().as_encoded_bytes())?)
}

#[derive(PartialEq)]
pub enum Collector {
    Auto,
    DeferredReferenceCounting,
    Null,
}

#[derive(Default)]
pub struct Config {
    is_drc: bool,
    has_fuel: bool,
    target: Option<String>,
}

impl Config {
    pub fn new() -> Config {
        Config::default()
    }

    pub fn collector(&mut self, collector: Collector) -> &mut Config {
        self.is_drc = collector == Collector::DeferredReferenceCounting;
        self
    }

    pub fn consume_fuel(&mut self, on: bool) -> &mut Config {
        self.has_fuel = on;
        self
    }

    pub fn target(&mut self, target: &str) -> Result<&mut Config> {
        self.target = Some(target.to_owned());
        Ok(self)
    }
}

/// A pointer of the library, and what deletes it.
struct Owned(Ptr, unsafe extern "C" fn(Ptr));

impl Drop for Owned {
    fn drop(&mut self) {
        unsafe { self.1(self.0) }
    }
}

unsafe impl Send for Owned {}
unsafe impl Sync for Owned {}

pub struct Engine(Owned);

impl Default for Engine {
    fn default() -> Engine {
        Engine::new(&Config::new()).unwrap()
    }
}

impl Engine {
    pub fn new(config: &Config) -> Result<Engine> {
        unsafe {
            let made = wasm_config_new();
            if let Some(target) = &config.target {
                check(
                    wasmtime_config_target_set(made, CString::new(target.as_str())?.as_ptr()),
                    null_mut(),
                )?;
            }
            wasmtime_config_consume_fuel_set(made, config.has_fuel);
            wasmtime_config_gc_support_set(made, config.is_drc);
            Ok(Engine(Owned(
                wasm_engine_new_with_config(made),
                wasm_engine_delete,
            )))
        }
    }

    pub fn precompile_module(&self, bytes: &[u8]) -> Result<Vec<u8>> {
        let (module, mut compiled) = (Module::new(self, bytes)?, Bytes(0, null_mut()));
        check(
            unsafe { wasmtime_module_serialize(module.0 .0, &mut compiled) },
            null_mut(),
        )?;
        Ok(compiled.to_vec())
    }
}

pub struct Module(Owned);

impl Module {
    pub fn new(engine: &Engine, bytes: impl AsRef<[u8]>) -> Result<Module> {
        let (wasm, mut made) = (bytes.as_ref(), null_mut());
        check(
            unsafe { wasmtime_module_new(engine.0 .0, wasm.as_ptr(), wasm.len(), &mut made) },
            null_mut(),
        )?;
        Ok(Module(Owned(made, wasmtime_module_delete)))
    }

    /// # Safety
    /// As in the crate.
    pub unsafe fn deserialize(engine: &Engine, bytes: impl AsRef<[u8]>) -> Result<Module> {
        let (code, mut made) = (bytes.as_ref(), null_mut());
        check(
            wasmtime_module_deserialize(engine.0 .0, code.as_ptr(), code.len(), &mut made),
            null_mut(),
        )?;
        Ok(Module(Owned(made, wasmtime_module_delete)))
    }

    /// # Safety
    /// As in the crate.
    pub unsafe fn deserialize_file(engine: &Engine, path: impl AsRef<Path>) -> Result<Module> {
        let mut made = null_mut();
        check(
            wasmtime_module_deserialize_file(engine.0 .0, c_path(path)?.as_ptr(), &mut made),
            null_mut(),
        )?;
        Ok(Module(Owned(made, wasmtime_module_delete)))
    }
}

pub mod component {
    use super::*;

    pub struct Component(#[allow(dead_code)] Owned);

    impl Component {
        /// # Safety
        /// As in the crate.
        pub unsafe fn deserialize_file(
            engine: &Engine,
            path: impl AsRef<Path>,
        ) -> Result<Component> {
            let mut made = null_mut();
            check(
                wasmtime_component_deserialize_file(engine.0 .0, c_path(path)?.as_ptr(), &mut made),
                null_mut(),
            )?;
            Ok(Component(Owned(made, wasmtime_component_delete)))
        }
    }
}

pub struct Store<T>(Owned, PhantomData<T>);

impl<T> Store<T> {
    pub fn new(engine: &Engine, _data: T) -> Store<T> {
        let made = unsafe { wasmtime_store_new(engine.0 .0, null_mut(), null_mut()) };
        Store(Owned(made, wasmtime_store_delete), PhantomData)
    }

    pub fn set_fuel(&mut self, fuel: u64) -> Result<()> {
        check(
            unsafe { wasmtime_context_set_fuel(self.context(), fuel) },
            null_mut(),
        )
    }

    fn context(&mut self) -> Ptr {
        unsafe { wasmtime_store_context(self.0 .0) }
    }
}

pub struct Instance([u64; 2]);

impl Instance {
    pub fn new<T>(store: &mut Store<T>, module: &Module, _imports: &[()]) -> Result<Instance> {
        let (mut made, mut trap) = ([0; 2], null_mut());
        let module = module.0 .0;
        let error = unsafe {
            wasmtime_instance_new(store.context(), module, null_mut(), 0, &mut made, &mut trap)
        };
        check(error, trap)?;
        Ok(Instance(made))
    }

    pub fn get_typed_func<P, R>(
        &self,
        store: &mut Store<impl Sized>,
        name: &str,
    ) -> Result<TypedFunc<P, R>> {
        let mut found = Extern(0, Func(0, null_mut()), [0]);
        let (text, size) = (name.as_ptr(), name.len());
        match unsafe {
            wasmtime_instance_export_get(store.context(), &self.0, text, size, &mut found)
        } {
            true if found.0 == 0 => Ok(TypedFunc(found.1, PhantomData)),
            _ => Err(Error(format!("failed to find function export `{name}`"))),
        }
    }
}

/// Numbers that a function takes.
pub trait WasmParams {
    fn values(&self) -> Vec<Value>;
}

impl WasmParams for i32 {
    fn values(&self) -> Vec<Value> {
        vec![Value(0, [u64::from(*self as u32), 0, 0])]
    }
}

impl WasmParams for (i32, i32) {
    fn values(&self) -> Vec<Value> {
        [self.0.values(), self.1.values()].concat()
    }
}

pub struct TypedFunc<P, R>(Func, PhantomData<(P, R)>);

impl<P: WasmParams> TypedFunc<P, i32> {
    pub fn call<T>(&self, store: &mut Store<T>, params: P) -> Result<i32> {
        let (values, mut result, mut trap) = (params.values(), Value(0, [0; 3]), null_mut());
        let (first, count) = (values.as_ptr(), values.len());
        check(
            unsafe {
                wasmtime_func_call(
                    store.context(),
                    &self.0,
                    first,
                    count,
                    &mut result,
                    1,
                    &mut trap,
                )
            },
            trap,
        )?;
        Ok(result.1[0] as i32)
    }
}
