//! The program `mope`.

fn main() -> std::process::ExitCode {
    mope_bench::main()
}
