//! Placeholder until the supervisor is merged: `kilnd launcher --number N --slot K`.

fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["launcher", "--number", number, "--slot", slot] => kiln::launcher::run(number.parse()?, slot.parse()?),
        _ => anyhow::bail!("only the launcher is here"),
    }
}
