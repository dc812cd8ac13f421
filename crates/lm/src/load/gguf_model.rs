//! A GGUF file, or several that belong together, as a [`Checkpoint`].

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use super::gguf::{Header, Value};
use super::gguf_config::{Factors, architecture, decoder_config, hf_name, interleaved};
use super::layout::apart;
use super::mapped::{Mapped, StoredTensor};
use super::scales::Scales;
use super::{Checkpoint, template_source};
use crate::{Error, Result};

impl Checkpoint {
    /// GGUF stores q and k of `llama` for interleaved rotation, those of Qwen half-split.
    pub(super) fn rope_interleaved(&self) -> bool {
        self.gguf.is_some() && interleaved(&self.family)
    }
}

/// The other parts of a model that llama.cpp's `gguf-split` cut, in their order; none for a whole one.
///
/// # Errors
/// A part that is not the first, or another one that is missing.
fn other_parts(path: &Path, header: &Header) -> Result<Vec<PathBuf>> {
    let count = header.integer("split.count").unwrap_or(1);
    if count < 2 {
        return Ok(vec![]);
    }
    let part = header.integer("split.no").unwrap_or(0) + 1;
    let name = path
        .file_name()
        .and_then(|n| n.to_str())
        .unwrap_or_default();
    let number = |part: usize| format!("-{part:05}-of-{count:05}.gguf");
    let Some(stem) = name.strip_suffix(&number(part)) else {
        let message = format!(
            "part {part} of {count} of a model, but its name does not end in '{}'; give the parts the names that \
             gguf-split gave them",
            number(part)
        );
        return Err(Error::format(path, message));
    };
    if part != 1 {
        let first = format!("{stem}{}", number(1));
        let message = format!("part {part} of {count} of a model; open the first, {first}");
        return Err(Error::format(path, message));
    }
    let others = (2..=count).map(|part| path.with_file_name(format!("{stem}{}", number(part))));
    let others: Vec<PathBuf> = others.take(1 << 16).collect();
    match others.iter().find(|p| !p.is_file()) {
        None => Ok(others),
        Some(missing) => {
            let missing = missing.display();
            let message = format!("part 1 of {count} of a model; {missing} is missing: fetch it");
            Err(Error::format(path, message))
        }
    }
}

/// All files of the model that a `.gguf` file is, or is the first part of.
///
/// # Errors
/// A file that is no GGUF; a part that is not the first, or another one that is missing.
pub fn files(path: &Path) -> Result<Vec<PathBuf>> {
    let header = Header::parse(&Mapped::open(path)?)?;
    let others = other_parts(path, &header)?;
    Ok([vec![path.to_path_buf()], others].concat())
}

/// Whether a file is a part of a model other than the first, by the name that `gguf-split` gave it.
pub(crate) fn is_later_part(path: &Path) -> bool {
    let stem = path.file_stem().and_then(|s| s.to_str());
    let number = stem.and_then(|s| s.rsplit_once("-of-")?.0.rsplit_once('-').map(|(_, n)| n));
    number.is_some_and(|n| n.len() == 5 && n.parse::<u32>().is_ok_and(|n| n > 1))
}

/// Opens a `.gguf` file, or the first of a model's.
pub(super) fn open(path: &Path) -> Result<Checkpoint> {
    let file = Mapped::open(path)?;
    let mut header = Header::parse(&file)?;
    if header.string("general.type") == Some("adapter") {
        let what = "general.type 'adapter' for a model";
        return Err(Error::unsupported(
            path,
            what,
            "models; an adapter goes beside its base",
        ));
    }
    let others = other_parts(path, &header)?;
    let arch = architecture(path, &header)?.to_string();
    let mut files = vec![file];
    let mut tensors: HashMap<String, (usize, StoredTensor)> = HashMap::new();
    let mut parts = vec![std::mem::take(&mut header.tensors)];
    for part in others {
        let file = Mapped::open(&part)?;
        parts.push(Header::parse(&file)?.tensors);
        files.push(file);
    }
    let mut factors = Factors::default();
    for (number, part) in parts.into_iter().enumerate() {
        let mut part: Vec<_> = part.into_iter().collect();
        part.sort_by(|a, b| a.0.cmp(&b.0));
        for (name, mut tensor) in part {
            if let Some(place) = factors.place(&name)
                && place.is_none()
            {
                *place = Some(files[number].read(&name, &tensor)?);
                continue;
            }
            let known = hf_name(&arch, &name);
            if known.ends_with(".shared_expert_gate.weight") && tensor.shape.len() == 1 {
                tensor.shape.insert(0, 1);
            }
            if tensors.insert(known.clone(), (number, tensor)).is_some() {
                let message =
                    format!("two tensors are '{known}', one of them by the name '{name}'");
                return Err(Error::format(files[number].path(), message));
            }
        }
    }
    let config = decoder_config(path, &header, &tensors, factors)?;
    let tensors = apart(path, &config, tensors)?;
    let token = |key: &str| header.integer(key).and_then(|id| u32::try_from(id).ok());
    let eos = token("tokenizer.ggml.eos_token_id");
    let ends = [
        eos,
        token("tokenizer.ggml.eot_token_id"),
        token("tokenizer.ggml.eom_token_id"),
    ];
    let text = |id: Option<u32>| match header.array("tokenizer.ggml.tokens")?.get(id? as usize)? {
        Value::String(text) => Some(text.clone()),
        _ => None,
    };
    Ok(Checkpoint {
        path: path.into(),
        chat_template: header
            .string("tokenizer.chat_template")
            .map(template_source),
        bos_token: text(token("tokenizer.ggml.bos_token_id")),
        eos_token: text(eos),
        end_tokens: ends.into_iter().flatten().collect(),
        family: arch,
        config,
        files,
        tensors,
        scales: Scales::default(),
        gguf: Some(header),
        edit: None,
        scores: None,
    })
}
