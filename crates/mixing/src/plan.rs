//! How a strategy serves one preference: which experts run, what they read, and what mixes them.

use std::collections::BTreeMap;
use std::path::PathBuf;

use lm::chat::{Message, Prompt};

use crate::merging::Recipe;
use crate::{Error, Mixed, Mixer, Requirements, Result, Step, Strategy};

/// A strategy that may serve a preference.
#[derive(Debug, Clone, PartialEq)]
pub struct Candidate {
    /// What it is called in tables.
    pub name: String,
    /// What it is.
    pub strategy: Strategy,
}

/// How a strategy serves one preference. A strategy is asked for it once; whoever decodes with it several times clones
/// it.
#[derive(Clone)]
pub struct Plan {
    /// Experts to run, in the order of the mixer's weights. Sorted by name where there are several,
    /// so that results don't depend on the order in which a config lists them.
    pub experts: Vec<String>,
    /// What it needs of each expert that it runs; of candidates, what all of them need together.
    pub requirements: Requirements,
    /// Instruction added to every prompt.
    pub instruction: Option<String>,
    /// Turns shown before every prompt.
    pub examples: Vec<Message>,
    /// Mixes them. A clone of a plan that was never decoded with has one that starts afresh.
    pub mixer: Box<dyn Mixer>,
    /// Responses that are made for each one that is kept, by utility; attempt `a` of request `r` is sequence
    /// `r · samples + a` ([`History::request`](crate::History::request)).
    pub samples: usize,
    /// One of these is to serve the preference; which, is still to be found out. The plan's experts are all of
    /// theirs. Empty where nothing is to be chosen.
    pub candidates: Vec<Candidate>,
    /// How experts that run are merged out of others, by name.
    pub merged: BTreeMap<String, Recipe>,
    /// What it answers to every prompt, where that is fixed; then no expert runs and nothing is decoded.
    pub text: Option<String>,
    /// The file that holds its responses, where they were made elsewhere; then no expert runs and nothing is decoded.
    pub recorded: Option<PathBuf>,
}

impl Plan {
    /// Mixes experts that can tell what is required, the prompt as it is.
    pub fn new(
        experts: Vec<String>,
        requirements: Requirements,
        mixer: impl Mixer + Clone + 'static,
    ) -> Self {
        Self {
            experts,
            requirements,
            instruction: None,
            examples: Vec::new(),
            mixer: Box::new(mixer),
            samples: 1,
            candidates: Vec::new(),
            merged: BTreeMap::new(),
            text: None,
            recorded: None,
        }
    }

    /// Answers every prompt with a text.
    pub fn of_text(text: String) -> Self {
        Self {
            text: Some(text),
            ..Self::new(Vec::new(), Requirements::LIKELIEST, Said)
        }
    }

    /// The experts that must be there, each once: those that run, or those that are merged into one that runs.
    pub fn sources(&self) -> Vec<&str> {
        let mut names: Vec<&str> = Vec::new();
        for name in &self.experts {
            match self.merged.get(name) {
                Some(recipe) => names.extend(recipe.experts.iter().map(String::as_str)),
                None => names.push(name),
            }
        }
        names.sort_unstable();
        names.dedup();
        names
    }

    /// The experts get another prompt than the one that is asked.
    pub fn rephrases(&self) -> bool {
        self.instruction.is_some() || !self.examples.is_empty()
    }

    /// The prompt as the experts get it.
    ///
    /// # Errors
    /// A raw prompt where an instruction or examples are to be added.
    pub fn prompt(&self, prompt: &Prompt) -> Result<Prompt> {
        let mut prompt = match self.examples.as_slice() {
            [] => prompt.clone(),
            turns => prompt.after(turns)?,
        };
        if let Some(text) = &self.instruction {
            prompt = prompt.instructed(text)?;
        }
        Ok(prompt)
    }
}

/// Mixes nothing: the text is there.
#[derive(Clone)]
struct Said;

impl Mixer for Said {
    fn mix(&mut self, _: &Step<'_>, _: &mut Mixed) -> Result<()> {
        Err(Error::FixedText)
    }
}

impl std::fmt::Debug for Plan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            experts,
            requirements,
            instruction,
            examples,
            samples,
            candidates,
            merged,
            text,
            recorded,
            mixer: _,
        } = self;
        f.debug_struct("Plan")
            .field("experts", experts)
            .field("requirements", requirements)
            .field("instruction", instruction)
            .field("examples", examples)
            .field("samples", samples)
            .field("candidates", candidates)
            .field("merged", merged)
            .field("text", text)
            .field("recorded", recorded)
            .finish_non_exhaustive()
    }
}
