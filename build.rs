//! Links kiln-init: no libc, no start files, not position independent (nobody would relocate it), so that a
//! container's first process is one static page or two that starts in no time.

fn main() {
    for argument in ["-nostartfiles", "-nostdlib", "-static", "-no-pie"] {
        println!("cargo:rustc-link-arg-bin=kiln-init={argument}");
    }
    println!("cargo:rerun-if-changed=build.rs");
}
