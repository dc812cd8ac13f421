//! The PCM beside decoding experts: one step at a time, with a cache.

use lm::packed::{PackedCache, PackedDecoder, Scratch};

use crate::model::Embed;
use crate::{Error, Pcm, Result};

/// Tokens of room that a sequence gets at a time.
const ROOM: usize = 256;

/// A sequence at one step.
#[derive(Debug, Clone, Copy)]
pub struct Sequence<'a> {
    /// Its name: sequences join and leave.
    pub id: usize,
    /// Tokens of preference and prompt; read at the sequence's first step and not needed later.
    pub context: &'a [u32],
    /// Tokens of the response so far.
    pub response: &'a [u32],
    /// Importance of each of the PCM's experts.
    pub shares: &'a [f32],
    /// Statistics of the experts' distributions at this step, if the PCM reads them.
    pub statistics: &'a [f32],
}

/// The PCM beside decoding experts, with a cache of its own.
#[derive(Debug)]
pub struct Runner {
    pcm: Pcm,
    decoder: PackedDecoder,
    cache: Option<PackedCache>,
    /// Names of the cache's lanes.
    lanes: Vec<usize>,
    /// Tokens that each lane has room for.
    room: Vec<usize>,
    scratch: Scratch,
}

impl Runner {
    /// A runner that has read nothing.
    pub fn new(pcm: Pcm) -> Self {
        Self {
            decoder: pcm.blocks().packed(pcm.head()),
            pcm,
            cache: None,
            lanes: Vec::new(),
            room: Vec::new(),
            scratch: Scratch::default(),
        }
    }

    /// The model.
    pub fn pcm(&self) -> &Pcm {
        &self.pcm
    }

    /// Logits of the weights for the next token of every sequence, `[sequences, experts]`. Sequences with an
    /// empty response begin; while others go on, those that are not named have left.
    ///
    /// # Errors
    /// A sequence that goes on but never began, or that does not fit the PCM; [`Error::NoNumbers`].
    pub fn step(&mut self, sequences: &[Sequence<'_>], embed: &Embed<'_>) -> Result<Vec<f32>> {
        let (fresh, old): (Vec<_>, Vec<_>) =
            (0..sequences.len()).partition(|&i| sequences[i].response.is_empty());
        let n = self.pcm.config().experts.len();
        let mut logits = vec![0.0; sequences.len() * n];
        if !old.is_empty() {
            let named: Vec<&Sequence<'_>> = old.iter().map(|&i| &sequences[i]).collect();
            let out = self.go_on(&named, embed)?;
            for (&i, row) in old.iter().zip(out.chunks(n)) {
                logits[i * n..(i + 1) * n].copy_from_slice(row);
            }
        }
        if !fresh.is_empty() {
            let named: Vec<&Sequence<'_>> = fresh.iter().map(|&i| &sequences[i]).collect();
            let out = self.begin(&named, embed)?;
            for (&i, row) in fresh.iter().zip(out.chunks(n)) {
                logits[i * n..(i + 1) * n].copy_from_slice(row);
            }
        }
        for (row, sequence) in logits.chunks_mut(n).zip(sequences) {
            self.pcm.add_preference(row, sequence.shares);
            let mut named = row.iter().zip(sequence.shares).filter(|(_, s)| **s != 0.0);
            if named.any(|(z, _)| !z.is_finite()) {
                return Err(none(sequence));
            }
        }
        Ok(logits)
    }

    fn begin(&mut self, sequences: &[&Sequence<'_>], embed: &Embed<'_>) -> Result<Vec<f32>> {
        let longest = sequences.iter().map(|s| s.context.len()).max().unwrap_or(0);
        let room = longest + ROOM;
        let mut cache = self.decoder.cache(sequences.len(), room);
        let inputs = self.inputs(sequences, |s| s.context, embed)?;
        let out = self
            .read(&inputs, &mut cache)
            .map_err(|e| blame(e, sequences))?;
        match &mut self.cache {
            Some(all) => all.join(cache)?,
            None => self.cache = Some(cache),
        }
        self.lanes.extend(sequences.iter().map(|s| s.id));
        self.room.extend(sequences.iter().map(|_| room));
        Ok(out)
    }

    fn go_on(&mut self, sequences: &[&Sequence<'_>], embed: &Embed<'_>) -> Result<Vec<f32>> {
        let lane_of = |s: &&Sequence<'_>| {
            let lane = self.lanes.iter().rposition(|lane| *lane == s.id);
            lane.ok_or(Error::UnknownSequence(s.id))
        };
        let keep: Vec<usize> = sequences.iter().map(lane_of).collect::<Result<_>>()?;
        let first = sequences[0].id;
        let mut cache = self.cache.take().ok_or(Error::UnknownSequence(first))?;
        let stays = keep.len() == self.lanes.len() && keep.iter().enumerate().all(|(i, k)| i == *k);
        if !stays {
            cache.retain(&keep)?;
            self.lanes = sequences.iter().map(|s| s.id).collect();
            self.room = keep.iter().map(|&i| self.room[i]).collect();
        }
        for (lane, read) in cache.lengths().into_iter().enumerate() {
            let needed = read + 1;
            if needed > self.room[lane] {
                self.room[lane] = needed + ROOM;
                cache.reserve(lane, self.room[lane]);
            }
        }
        let last = |s: &Sequence<'_>| -> Vec<u32> { s.response[s.response.len() - 1..].to_vec() };
        let tokens: Vec<Vec<u32>> = sequences.iter().map(|s| last(s)).collect();
        let mut inputs = Vec::new();
        for (sequence, token) in sequences.iter().zip(&tokens) {
            inputs.extend(self.inputs(&[sequence], |_| token, embed)?);
        }
        let out = self.read(&inputs, &mut cache);
        self.cache = Some(cache);
        out.map_err(|e| blame(e, sequences))
    }

    fn inputs<'s>(
        &self,
        sequences: &[&Sequence<'s>],
        tokens: impl Fn(&Sequence<'s>) -> &'s [u32],
        embed: &Embed<'_>,
    ) -> Result<Vec<Vec<f32>>> {
        let config = self.pcm.config();
        let width = if config.statistics {
            config.statistics_width()
        } else {
            0
        };
        let one = |s: &&Sequence<'s>| {
            if s.shares.len() != config.experts.len() || s.statistics.len() != width {
                return Err(Error::Inputs {
                    importances: s.shares.len(),
                    statistics: s.statistics.len(),
                    experts: config.experts.len(),
                    expected: width,
                });
            }
            let tokens = tokens(s);
            let embedded = self.pcm.embed(tokens, embed);
            Ok(self
                .pcm
                .inputs(&embedded, tokens.len(), s.shares, s.statistics))
        };
        sequences.iter().map(one).collect()
    }

    fn read(&mut self, inputs: &[Vec<f32>], cache: &mut PackedCache) -> Result<Vec<f32>> {
        let inputs: Vec<&[f32]> = inputs.iter().map(Vec::as_slice).collect();
        let mut out = vec![0.0; inputs.len() * self.pcm.config().experts.len()];
        let scratch = &mut self.scratch;
        self.decoder
            .next_outputs(&inputs, cache, scratch, &mut out)?;
        Ok(out)
    }
}

fn none(sequence: &Sequence<'_>) -> Error {
    Error::NoNumbers {
        sequence: sequence.id,
        token: sequence.response.len(),
    }
}

/// Names the sequence of a lane without numbers.
fn blame(error: Error, sequences: &[&Sequence<'_>]) -> Error {
    match error {
        Error::Lm(lm::Error::NoNumbers { lane }) if lane < sequences.len() => none(sequences[lane]),
        other => other,
    }
}
