//! CPU comes in proportion to memory, and whole during init.
//!
//! Its own program, one test at a time: whatever else runs takes from what is measured.

#[path = "../engine/host/mod.rs"]
#[allow(dead_code)] // the module serves several test programs; each uses its part
mod host;

use std::io::Write;
use std::sync::{Mutex, MutexGuard, PoisonError};

use host::Instance;
use serde_json::json;

/// Guards the machine's CPUs: taken by each test here for its whole length.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn iterations(instance: &Instance, function: &str) -> f64 {
    let told = instance.call(function, &json!({ "spin": 2000 }));
    told["iterations"].as_f64().expect("a number") / told["took_ms"].as_f64().expect("a number")
}

/// Ratios of work done in the same time, side by side on one machine; each size three times in turn, and of each its
/// best: neighbours on the machine can only take away, and they take from the whole CPU first.
#[test]
fn cpu_is_in_proportion_to_memory() {
    if !host::ready() {
        return;
    }
    let _alone = alone();
    let instance = Instance::start();
    let sizes = [128, 512, 1792];
    for size in sizes {
        instance.create_probe(&format!("f{size}"), json!({ "MemorySize": size, "Timeout": 30 }));
    }
    // A burst adds at most one quota to a spin of two seconds, which has twenty.
    let near = |ratio: f64, right: f64| (right * 0.8..=right * 1.3).contains(&ratio);
    let mut best = [0.0_f64; 3];
    let (mut small, mut middle) = (0.0, 0.0);
    // A busy neighbour takes most from the one who may use most. The best of each size is right as soon as the host was
    // quiet for each of them once; a wrong quota is wrong in every round.
    for round in 1..=10 {
        for (best, size) in best.iter_mut().zip(sizes) {
            *best = best.max(iterations(&instance, &format!("f{size}")));
        }
        (small, middle) = (best[0] / best[2], best[1] / best[2]);
        if round >= 3 && near(small, 128.0 / 1769.0) && near(middle, 512.0 / 1769.0) {
            break;
        }
    }
    // To the handle itself: the test runner keeps what a passing test prints with println!.
    let _ = writeln!(std::io::stderr(), "CPU at 128, 512, 1792 MB, relative: {small:.3} {middle:.3} 1");
    assert!(near(small, 128.0 / 1769.0), "128 MB: {small}");
    assert!(near(middle, 512.0 / 1769.0), "512 MB: {middle}");
}

#[test]
fn init_has_a_whole_cpu_and_the_handler_has_not() {
    if !host::ready() {
        return;
    }
    let _alone = alone();
    let instance = Instance::start();
    let vars = json!({ "Variables": { "PROBE_INIT": "spin:500" } });
    instance.create_probe("small", json!({ "MemorySize": 128, "Timeout": 30, "Environment": vars }));
    instance.create_probe("large", json!({ "MemorySize": 1792, "Timeout": 30, "Environment": vars }));
    let init = |function| {
        let told = instance.call(function, &json!({ "do": "global" }))["init_iterations"].as_f64().expect("a number");
        // The next one must initialise again.
        instance.invoke(function, &json!({ "exit": 0 }));
        told
    };
    let mut best = [0.0_f64; 2];
    for _ in 0..3 {
        best = [best[0].max(init("small")), best[1].max(init("large"))];
    }
    let ratio = best[0] / best[1];
    assert!((0.6..=1.5).contains(&ratio), "init work of 128 MB relative to 1792 MB: {ratio}");
    let handler = iterations(&instance, "small") / iterations(&instance, "large");
    assert!(handler < 0.2, "handler work of 128 MB relative to 1792 MB: {handler}");
}
