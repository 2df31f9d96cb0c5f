//! Echo servers for the lab's workloads: `probe serve --tcp 80 --udp 53`.

use clap::Parser;

#[derive(Parser)]
enum Command {
    /// Echo on these ports until killed.
    Serve {
        #[arg(long)]
        tcp: Vec<u16>,
        #[arg(long)]
        udp: Vec<u16>,
    },
}

fn main() -> anyhow::Result<()> {
    match Command::parse() {
        Command::Serve { tcp, udp } => e2e::probe::serve(&tcp, &udp),
    }
}
