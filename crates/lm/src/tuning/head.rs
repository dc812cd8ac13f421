//! What last hidden states are turned into: log-probabilities and their derivatives, or themselves.

use kernels::{Dense, Isa, math};

use super::forward::norm_rows;
use super::packed::{PackedTuning, Worker, spans};
use super::tape::sized;
use super::{Output, Sequence};

/// Rows whose distributions are in memory together (ours: 25 MB for 49,152 tokens).
const ROWS: usize = 128;

impl PackedTuning {
    fn vocabulary(&self) -> &Dense {
        self.head.as_ref().unwrap_or(&self.embedding)
    }

    /// The outputs of a chunk that [`Self::forward`] has read, by sequence; with `unit`, the derivatives of
    /// log-probabilities by hidden states are kept.
    pub(super) fn read_out(
        &self,
        chunk: &[&Sequence],
        worker: &mut Worker,
        output: Output,
        unit: bool,
    ) -> Vec<Vec<f32>> {
        let width = self.config().hidden_size;
        let results = results(chunk, output);
        let mut hidden = vec![0.0; results.len() * width];
        for ((row, _), out) in results.iter().zip(hidden.chunks_mut(width)) {
            let stream = &worker.tape.stream[row * width..(row + 1) * width];
            norm_rows(
                Isa::best(),
                stream,
                &self.blocks.norm,
                self.config().norm_eps,
                out,
            );
        }
        match output {
            Output::Hidden => hidden.chunks(width).map(<[f32]>::to_vec).collect(),
            Output::LogProbs { temperature } => {
                let tokens: Vec<u32> = results.iter().map(|(_, token)| *token).collect();
                let all = self.score(&hidden, &tokens, temperature, worker, unit);
                let mut rest = all.as_slice();
                let scored = |sequence: &&Sequence| {
                    let (values, others) = rest.split_at(sequence.scored());
                    rest = others;
                    values.to_vec()
                };
                chunk.iter().map(scored).collect()
            }
        }
    }

    /// Log-probability of each token after each hidden state, and with `unit` its derivative.
    fn score(
        &self,
        hidden: &[f32],
        tokens: &[u32],
        temperature: f32,
        worker: &mut Worker,
        unit: bool,
    ) -> Vec<f32> {
        let (width, vocab, isa) = (
            self.config().hidden_size,
            self.config().vocab_size,
            Isa::best(),
        );
        let mut out = Vec::with_capacity(tokens.len());
        let inverse = 1.0 / temperature;
        if unit {
            sized(&mut worker.unit, hidden.len());
        }
        let mut logits = vec![0.0; ROWS.min(tokens.len()) * vocab];
        let mut word = vec![0.0; width];
        for (part, tokens) in tokens.chunks(ROWS).enumerate() {
            let rows = part * ROWS..part * ROWS + tokens.len();
            let part = rows.start * width..rows.end * width;
            let logits = &mut logits[..tokens.len() * vocab];
            let (hidden, dense) = (&hidden[part.clone()], &mut worker.dense);
            let head = self.vocabulary();
            head.forward(hidden, tokens.len(), logits, false, dense);
            for (row, token) in logits.chunks_mut(vocab).zip(tokens) {
                if inverse != 1.0 {
                    row.iter_mut().for_each(|v| *v *= inverse);
                }
                math::log_softmax(isa, row);
                out.push(row[*token as usize]);
                if unit {
                    math::exp_all(isa, row);
                }
            }
            if unit {
                let unit = &mut worker.unit[part];
                head.backward(logits, tokens.len(), unit, false, dense);
                for (unit, token) in unit.chunks_mut(width).zip(tokens) {
                    head.row(*token as usize, &mut word);
                    unit.iter_mut()
                        .zip(&word)
                        .for_each(|(u, w)| *u = (w - *u) * inverse);
                }
            }
        }
        out
    }

    /// Turns derivatives by outputs into those by the read-out hidden states before the last norm, written
    /// to `tape.stream` (zero elsewhere) for [`Self::backward`].
    pub(super) fn write_back(
        &self,
        chunk: &[&Sequence],
        worker: &mut Worker,
        output: Output,
        wanted: &[Vec<f32>],
    ) {
        let (width, isa) = (self.config().hidden_size, Isa::best());
        let results = results(chunk, output);
        let d_results = sized(&mut worker.d_results, results.len() * width);
        match output {
            Output::Hidden => d_results
                .chunks_mut(width)
                .zip(wanted)
                .for_each(|(to, from)| to.copy_from_slice(from)),
            Output::LogProbs { .. } => {
                let factors = wanted.iter().flatten();
                let rows = d_results.chunks_mut(width).zip(worker.unit.chunks(width));
                for ((to, unit), factor) in rows.zip(factors) {
                    to.iter_mut().zip(unit).for_each(|(t, u)| *t = factor * u);
                }
            }
        }
        let mut d_stream = vec![0.0; worker.tape.stream.len()];
        for ((row, _), d) in results.iter().zip(worker.d_results.chunks(width)) {
            let part = row * width..(row + 1) * width;
            let (stream, eps) = (&worker.tape.stream[part.clone()], self.config().norm_eps);
            math::rms_norm_backward(isa, stream, &self.blocks.norm, eps, d, &mut d_stream[part]);
        }
        worker.tape.stream = d_stream;
    }
}

/// Rows of the chunk whose hidden states are read out, sequence after sequence, and the tokens that they predict.
fn results(chunk: &[&Sequence], output: Output) -> Vec<(usize, u32)> {
    let sequences = spans(chunk).zip(chunk);
    let results = sequences.flat_map(|(span, sequence)| sequence.results(span.start, output));
    results.collect()
}
