//! The program `mope`.

fn main() -> std::process::ExitCode {
    bench::main()
}
