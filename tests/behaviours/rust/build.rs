//! The native dependency, as any crate that brings C along has it.
fn main() {
    println!("cargo:rerun-if-changed=../native/answer.c");
    cc::Build::new().file("../native/answer.c").compile("answer");
}
