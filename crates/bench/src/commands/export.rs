//! `mope export`: a model as a Hugging Face folder.

use anyhow::Result;
use lm::Adapter;
use lm::load::Checkpoint;
use serde_json::json;

use super::Global;
use crate::cli::ExportArgs;
use harness::failure::usage;
use harness::models::{resolve, resolve_adapter};

pub fn export(global: &Global, args: &ExportArgs) -> Result<()> {
    let model = args.model.as_deref();
    let model = model.ok_or_else(|| usage("--model, or a run folder with --rows"))?;
    let checkpoint = Checkpoint::open(&resolve(model)?)?;
    let adapter = match &args.adapter {
        Some(folder) => Some(Adapter::load(
            &resolve_adapter(folder)?,
            checkpoint.config(),
        )?),
        None => None,
    };
    checkpoint.export(&args.out, args.precision, adapter.as_ref())?;
    let out = args.out.display().to_string();
    let parameters = checkpoint.config().parameters();
    let document = json!({
        "path": out,
        "parameters": parameters,
        "precision": args.precision,
        "merged": adapter.is_some(),
    });
    global.print(document, || {
        format!(
            "{out}: {:.1} M parameters, {:?}",
            parameters as f64 / 1e6,
            args.precision
        )
    })
}
