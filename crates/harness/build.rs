//! Which versions of the libraries that results depend on were built: read from the lock file, for manifests.

use std::path::{Path, PathBuf};

/// Libraries whose versions a manifest names.
const WATCHED: [&str; 6] = [
    "burn",
    "tokenizers",
    "minijinja",
    "polars",
    "textstat",
    "vader-sentimental",
];

fn main() {
    let here = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
    // In a checkout the workspace's lock file, in a package the one that it carries.
    let lock = Path::new(&here)
        .ancestors()
        .map(|folder| folder.join("Cargo.lock"))
        .find(|path| path.is_file());
    let text = lock
        .as_ref()
        .and_then(|path| std::fs::read_to_string(path).ok());
    println!(
        "cargo::rustc-env=MOPE_LIBRARIES={}",
        versions(&text.unwrap_or_default())
    );
    let watched: Option<PathBuf> = lock;
    if let Some(path) = watched {
        println!("cargo::rerun-if-changed={}", path.display());
    }
}

/// `name=version,name=version` of the watched packages.
fn versions(lock: &str) -> String {
    let packages = lock.split("[[package]]").filter_map(|package| {
        let field = |key: &str| {
            let line = package.lines().find_map(|line| line.strip_prefix(key))?;
            Some(line.trim_matches([' ', '=', '"']).to_string())
        };
        let name = field("name = ")?;
        let version = field("version = ")?;
        WATCHED
            .contains(&name.as_str())
            .then(|| format!("{name}={version}"))
    });
    packages.collect::<Vec<_>>().join(",")
}
