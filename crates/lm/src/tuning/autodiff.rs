//! The engine of any device: burn's operations and its automatic differentiation.
//!
//! 1. Sequences of like length stand side by side in a chunk, padded at the end to the longest.
//! 2. The way forward runs without a graph and keeps each block's input. The last blocks, as many as fit into
//!    [`GRAPHS`], keep their graph.
//! 3. The head takes [`LOGITS`] numbers at a time and makes `∂ log p / ∂ hidden` while it has the logits at hand. Only
//!    rows that predict a scored token are read out.
//! 4. The way back takes one block after the other: its graph, made again where it was not kept, is walked from
//!    `Σ y · ∂ loss / ∂ y`, and freed.
//!
//! Sums over chunks are made in the chunks' order, which follows from the lengths alone.

use std::collections::HashMap;
use std::ops::Range;

use burn::tensor::activation::log_softmax;
use burn::tensor::{Device, IndexingUpdateOp, Int, Tensor, TensorData};

use super::{Gradient, Item, LoraParameters, Objective, Output, Sequence};
use crate::adapter::Target;
use crate::decoder::Pass;
use crate::device::to_host;
use crate::load::Checkpoint;
use crate::{Decoder, DecoderConfig, Error, Format, Result};

/// Most tokens of a chunk, padding included, unless a single item has more (ours, not tuned on a GPU).
const TOKENS: usize = 1024;
/// Bytes of graphs that are kept on the way forward (ours).
const GRAPHS: usize = 2 << 30;
/// Logits that are in memory together (ours: 64 MB).
const LOGITS: usize = 1 << 24;
/// Lengths are padded to a multiple of this, so that few shapes occur on devices that compile or tune kernels by
/// shape (ours).
const STRIDE: usize = 8;

/// A frozen decoder on a device.
#[derive(Debug)]
pub(super) struct AutodiffTuning {
    decoder: Decoder,
    /// Bytes of graphs that are kept on the way forward.
    graphs: usize,
}

/// The pair of a matrix: `A [in, r]` and `B [r, out]`.
type Pair = (Tensor<2>, Tensor<2>);

/// An adapter on the device.
struct Pairs {
    scale: f32,
    pairs: HashMap<(usize, Target), Pair>,
}

/// What the way forward leaves of a block.
enum Kept {
    /// Its input.
    Input(Box<Tensor<3>>),
    /// Its whole graph.
    Graph(Box<Graph>),
}

/// The graph of one block.
struct Graph {
    input: Tensor<3>,
    pairs: HashMap<(usize, Target), Pair>,
    output: Tensor<3>,
}

/// Sequences that go through the blocks together.
struct Chunk<'a> {
    sequences: Vec<&'a Sequence>,
    time: usize,
}

impl AutodiffTuning {
    /// Reads a checkpoint onto a device.
    ///
    /// # Errors
    /// A mixture of experts, and those of [`Decoder::load`].
    pub fn load(checkpoint: &Checkpoint, device: &Device, format: Format) -> Result<Self> {
        if checkpoint.config().family.experts.is_some() {
            return Err(Error::unsupported(
                checkpoint.path(),
                format!(
                    "training of '{}' (a mixture of experts)",
                    checkpoint.family()
                ),
                "dense models; others run, and serve as experts",
            ));
        }
        let decoder = Decoder::load(checkpoint, device, format)?;
        Ok(Self {
            decoder,
            graphs: GRAPHS,
        })
    }

    pub fn config(&self) -> &DecoderConfig {
        self.decoder.config()
    }

    /// What is asked of every sequence.
    ///
    /// # Errors
    /// A device that fails.
    pub fn outputs(
        &self,
        adapter: Option<&LoraParameters>,
        sequences: &[Sequence],
        output: Output,
    ) -> Result<Vec<Vec<f32>>> {
        let pairs = adapter.map(|adapter| self.pairs(adapter));
        let items: Vec<&[Sequence]> = sequences.chunks(1).collect();
        let mut out = vec![Vec::new(); sequences.len()];
        for numbers in buckets(&items) {
            let chunk = Chunk::new(numbers.iter().map(|&i| items[i]));
            let (stream, _, _) = self.forward(pairs.as_ref(), &chunk, false)?;
            let (values, _) = self.read_out(&stream, &chunk, output, false)?;
            for (number, values) in numbers.into_iter().zip(values) {
                out[number] = values;
            }
        }
        Ok(out)
    }

    /// Loss of every item and the gradient of their sum.
    ///
    /// # Errors
    /// A device that fails.
    pub fn gradient(
        &self,
        adapter: &LoraParameters,
        items: &[Item],
        output: Output,
        loss: Objective<'_>,
    ) -> Result<Gradient> {
        let pairs = self.pairs(adapter);
        let slices: Vec<&[Sequence]> = items.iter().map(Vec::as_slice).collect();
        let mut losses = vec![0.0; items.len()];
        let mut sum: Option<Tensor<1>> = None;
        for numbers in buckets(&slices) {
            let chunk = Chunk::new(numbers.iter().map(|&i| slices[i]));
            let (stream, kept, pass) = self.forward(Some(&pairs), &chunk, true)?;
            let (outputs, unit) = self.read_out(&stream, &chunk, output, true)?;
            let (mut wanted, mut before) = (Vec::new(), 0);
            for &number in &numbers {
                let sequences = before..before + items[number].len();
                before = sequences.end;
                let loss = loss(number, &outputs[sequences]);
                losses[number] = loss.value;
                wanted.extend(loss.gradient.into_iter().flatten());
            }
            let d_stream = self.write_back(stream, &chunk, output, unit, wanted);
            let values = self.backward(&pairs, kept, &pass, d_stream)?;
            sum = Some(match sum {
                Some(sum) => sum + values,
                None => values,
            });
        }
        let values = match sum {
            Some(sum) => to_host(sum)?,
            None => vec![0.0; adapter.values.len()],
        };
        Ok(Gradient { losses, values })
    }

    /// The adapter's pairs on the device.
    fn pairs(&self, adapter: &LoraParameters) -> Pairs {
        let (device, rank) = (self.decoder.device(), adapter.config.rank);
        let all = Tensor::<1>::from_data(adapter.values.as_slice(), device);
        let matrix = |range: &Range<usize>, shape: [usize; 2]| {
            let values = all.clone().narrow(0, range.start, range.len());
            values.reshape(shape)
        };
        let mut pairs = HashMap::new();
        for layer in 0..self.config().layers {
            for target in Target::ALL {
                let Some(place) = adapter.place(layer, target) else {
                    continue;
                };
                let (inputs, outputs) = target.size(self.config());
                let a = matrix(&place.a, [inputs, rank]);
                let b = matrix(&place.b, [rank, outputs]);
                pairs.insert((layer, target), (a, b));
            }
        }
        Pairs {
            scale: adapter.config.scale(),
            pairs,
        }
    }

    /// Sends a chunk through the blocks: the last hidden states `[lanes · time, hidden]`, and for a way back what is
    /// kept of the blocks.
    fn forward(
        &self,
        pairs: Option<&Pairs>,
        chunk: &Chunk<'_>,
        back: bool,
    ) -> Result<(Tensor<2>, Vec<Kept>, Pass)> {
        let pass = self.decoder.whole(&chunk.lengths(), chunk.time);
        let mut x = self.decoder.embed(&chunk.ids(), chunk.sequences.len());
        let layers = self.config().layers;
        let graphs = self.graphs / self.graph_bytes(chunk);
        let mut kept = Vec::new();
        for layer in 0..layers {
            match pairs.filter(|_| back) {
                None => x = self.block(layer, x, &pass, pairs)?,
                Some(pairs) if layer + graphs >= layers => {
                    let graph = self.graph(layer, x, &pass, pairs)?;
                    x = graph.output.clone().inner();
                    kept.push(Kept::Graph(Box::new(graph)));
                }
                Some(_) => {
                    kept.push(Kept::Input(Box::new(x.clone())));
                    x = self.block(layer, x, &pass, pairs)?;
                }
            }
        }
        Ok((x.flatten(0, 1), kept, pass))
    }

    fn block(
        &self,
        layer: usize,
        x: Tensor<3>,
        pass: &Pass,
        pairs: Option<&Pairs>,
    ) -> Result<Tensor<3>> {
        let side = |layer: usize, target: Target, x: &Tensor<3>| {
            let pairs = pairs?;
            let pair = pairs.pairs.get(&(layer, target))?;
            Some(side(pair, pairs.scale, x))
        };
        let mut all = |k, v| (k, v);
        self.decoder.block(layer, x, pass, &mut all, &side)
    }

    /// A block with the graph of its derivatives by its input (but for the first, whose input nobody trains) and by
    /// its pairs.
    fn graph(&self, layer: usize, x: Tensor<3>, pass: &Pass, pairs: &Pairs) -> Result<Graph> {
        let leaf = |t: &Tensor<2>| t.clone().autodiff().require_grad();
        let here = pairs.pairs.iter().filter(|((l, _), _)| *l == layer);
        let tracked = Pairs {
            scale: pairs.scale,
            pairs: here.map(|(at, (a, b))| (*at, (leaf(a), leaf(b)))).collect(),
        };
        let input = match layer {
            0 => x,
            _ => x.autodiff().require_grad(),
        };
        let output = self.block(layer, input.clone(), pass, Some(&tracked))?;
        Ok(Graph {
            input,
            pairs: tracked.pairs,
            output,
        })
    }

    /// Bytes of a block's graph, roughly: what its operations keep.
    fn graph_bytes(&self, chunk: &Chunk<'_>) -> usize {
        let (c, lanes) = (self.config(), chunk.sequences.len());
        let row = 8 * c.hidden_size + 8 * c.heads * c.head_dim + 6 * c.intermediate_size;
        let scores = 4 * c.heads * chunk.time;
        4 * lanes * chunk.time * (row + scores)
    }

    /// The outputs of a chunk, by sequence; with `unit`, derivatives of log-probabilities by the hidden states that
    /// they were read from, `[results, hidden]`.
    fn read_out(
        &self,
        stream: &Tensor<2>,
        chunk: &Chunk<'_>,
        output: Output,
        unit: bool,
    ) -> Result<(Vec<Vec<f32>>, Option<Tensor<2>>)> {
        let results = chunk.results(output);
        let temperature = match output {
            Output::LogProbs { temperature } => temperature,
            Output::Hidden => {
                let rows = self.decoder.last_norm(self.select(stream, &results));
                let (values, width) = (to_host(rows)?, self.config().hidden_size);
                return Ok((values.chunks(width).map(<[f32]>::to_vec).collect(), None));
            }
        };
        let (mut all, mut units) = (Vec::new(), Vec::new());
        let at_once = (LOGITS / self.config().vocab_size).max(1);
        for results in results.chunks(at_once) {
            let mut rows = self.select(stream, results);
            if unit {
                rows = rows.autodiff().require_grad();
            }
            let log_probs = self.log_probs(rows.clone(), results, temperature);
            if unit {
                // Each row has one number that depends on it: the sum's derivatives are theirs.
                let mut gradients = log_probs.clone().sum().backward();
                units.extend(rows.grad_remove(&mut gradients));
            }
            all.push(log_probs.inner());
        }
        let values = match all.is_empty() {
            true => Vec::new(),
            false => to_host(Tensor::cat(all, 0))?,
        };
        let mut rest = values.as_slice();
        let scored = chunk.sequences.iter().map(|sequence| {
            let (values, others) = rest.split_at(sequence.scored());
            rest = others;
            values.to_vec()
        });
        let outputs = scored.collect();
        Ok((outputs, (!units.is_empty()).then(|| Tensor::cat(units, 0))))
    }

    /// Log-probability of the token that follows each row, `[results]`.
    fn log_probs(&self, rows: Tensor<2>, results: &[(usize, u32)], temperature: f32) -> Tensor<1> {
        let mut logits = self.decoder.logits(self.decoder.last_norm(rows));
        if temperature != 1.0 {
            logits = logits / temperature;
        }
        let tokens: Vec<i32> = results.iter().map(|(_, token)| *token as i32).collect();
        let tokens = TensorData::new(tokens, [results.len(), 1]);
        let tokens: Tensor<2, Int> = Tensor::from_data(tokens, self.decoder.device());
        let chosen = log_softmax(logits, 1).gather(1, tokens);
        chosen.flatten(0, 1)
    }

    /// Turns derivatives by outputs into those by the last hidden states, `[lanes · time, hidden]`.
    fn write_back(
        &self,
        stream: Tensor<2>,
        chunk: &Chunk<'_>,
        output: Output,
        unit: Option<Tensor<2>>,
        wanted: Vec<f32>,
    ) -> Tensor<3> {
        let (device, width) = (self.decoder.device(), self.config().hidden_size);
        let results = chunk.results(output);
        let d = match (output, unit) {
            (Output::LogProbs { .. }, Some(unit)) => {
                let wanted = TensorData::new(wanted, [results.len(), 1]);
                Some(unit * Tensor::<2>::from_data(wanted, device))
            }
            (Output::LogProbs { .. }, None) => None,
            (Output::Hidden, _) => {
                let wanted = TensorData::new(wanted, [results.len(), width]);
                let rows = self.select(&stream, &results).autodiff().require_grad();
                let normed = self.decoder.last_norm(rows.clone());
                let along = normed * Tensor::<2>::from_data(wanted, device);
                rows.grad_remove(&mut along.sum().backward())
            }
        };
        let mut d_stream = stream.zeros_like();
        if let Some(d) = d {
            let add = IndexingUpdateOp::Add;
            d_stream = d_stream.select_assign(0, self.rows(&results), d, add);
        }
        d_stream.reshape([chunk.sequences.len(), chunk.time, width])
    }

    /// Walks back through the blocks; derivatives by the adapter's numbers in the order of [`LoraParameters`].
    fn backward(
        &self,
        pairs: &Pairs,
        kept: Vec<Kept>,
        pass: &Pass,
        mut d: Tensor<3>,
    ) -> Result<Tensor<1>> {
        let mut layers = Vec::new();
        for (layer, kept) in kept.into_iter().enumerate().rev() {
            let graph = match kept {
                Kept::Graph(graph) => *graph,
                Kept::Input(x) => self.graph(layer, *x, pass, pairs)?,
            };
            let mut gradients = (graph.output * d.clone()).sum().backward();
            let mut values = Vec::new();
            for target in Target::ALL {
                let Some((a, b)) = graph.pairs.get(&(layer, target)) else {
                    continue;
                };
                for leaf in [a, b] {
                    let by = leaf.grad_remove(&mut gradients);
                    let by = by.unwrap_or_else(|| leaf.clone().inner().zeros_like());
                    values.push(by.flatten(0, 1));
                }
            }
            layers.push(Tensor::cat(values, 0));
            if let Some(by_input) = graph.input.grad_remove(&mut gradients) {
                d = by_input;
            }
        }
        layers.reverse();
        Ok(Tensor::cat(layers, 0))
    }

    fn rows(&self, results: &[(usize, u32)]) -> Tensor<1, Int> {
        let rows: Vec<i32> = results.iter().map(|(row, _)| *row as i32).collect();
        Tensor::from_data(rows.as_slice(), self.decoder.device())
    }

    fn select(&self, stream: &Tensor<2>, results: &[(usize, u32)]) -> Tensor<2> {
        stream.clone().select(0, self.rows(results))
    }
}

/// `scale · (x A) B` of `[lanes, time, in]`.
fn side((a, b): &Pair, scale: f32, x: &Tensor<3>) -> Tensor<3> {
    let [lanes, time, inputs] = x.dims();
    let rows = x.clone().reshape([lanes * time, inputs]);
    let y = (rows.matmul(a.clone()) * scale).matmul(b.clone());
    let outputs = y.dims()[1];
    y.reshape([lanes, time, outputs])
}

/// Numbers of the items that go together, the shortest first.
fn buckets(items: &[&[Sequence]]) -> Vec<Vec<usize>> {
    let longest = |&i: &usize| items[i].iter().map(Sequence::read).max().unwrap_or(0);
    let mut order: Vec<usize> = (0..items.len()).collect();
    order.sort_by_key(longest);
    let (mut buckets, mut lanes): (Vec<Vec<usize>>, usize) = (Vec::new(), 0);
    for item in order {
        let (count, time) = (items[item].len(), padded(longest(&item)));
        match buckets.last_mut() {
            Some(last) if (lanes + count) * time <= TOKENS => {
                last.push(item);
                lanes += count;
            }
            _ => {
                buckets.push(vec![item]);
                lanes = count;
            }
        }
    }
    buckets
}

fn padded(length: usize) -> usize {
    length.next_multiple_of(STRIDE)
}

impl<'a> Chunk<'a> {
    fn new(items: impl Iterator<Item = &'a [Sequence]>) -> Self {
        let sequences: Vec<&Sequence> = items.flatten().collect();
        let longest = sequences.iter().map(|s| s.read()).max().unwrap_or(0);
        Self {
            sequences,
            time: padded(longest),
        }
    }

    fn lengths(&self) -> Vec<usize> {
        self.sequences.iter().map(|s| s.read()).collect()
    }

    /// Tokens that are read, `[lanes · time]`.
    fn ids(&self) -> Vec<i32> {
        let mut ids = vec![0; self.sequences.len() * self.time];
        for (row, sequence) in ids.chunks_mut(self.time).zip(&self.sequences) {
            let read = &sequence.tokens[..sequence.read()];
            row.iter_mut().zip(read).for_each(|(id, t)| *id = *t as i32);
        }
        ids
    }

    /// Rows of the stream that are read out, and the tokens that they predict.
    fn results(&self, output: Output) -> Vec<(usize, u32)> {
        let lanes = self.sequences.iter().enumerate();
        let results = lanes.flat_map(|(lane, s)| s.results(lane * self.time, output));
        results.collect()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::tuning::LoraConfig;

    fn item(lengths: &[usize]) -> Item {
        let sequence = |&length: &usize| Sequence {
            tokens: vec![1; length],
            from: 1,
        };
        lengths.iter().map(sequence).collect()
    }

    #[test]
    fn items_of_like_length_go_together() {
        let items = [item(&[300, 9]), item(&[20, 30]), item(&[9]), item(&[301])];
        let slices: Vec<&[Sequence]> = items.iter().map(Vec::as_slice).collect();
        // 3 lanes of 32, then 2 + 1 lanes of 304 tokens.
        assert_eq!(buckets(&slices), [vec![2, 1], vec![0, 3]]);
        let chunk = Chunk::new([2, 1].into_iter().map(|i| slices[i]));
        assert_eq!((chunk.time, chunk.lengths()), (32, vec![8, 19, 29]));
        assert_eq!(chunk.ids().len(), 96);
        let results = chunk.results(Output::Hidden);
        assert_eq!(results, [(7, 1), (32 + 18, 1), (64 + 28, 1)]);
        // One item is never cut.
        let long = item(&[3000, 2000]);
        assert_eq!(buckets(&[&long]), [vec![0]]);
    }

    /// Some operations round differently where a graph is kept.
    #[test]
    fn a_graph_that_is_made_again_gives_the_same_gradient() {
        let shape = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/pico/qwen3");
        let checkpoint = Checkpoint::open(shape.as_ref()).unwrap();
        let mut tuning = AutodiffTuning::load(&checkpoint, &Device::flex(), Format::F32).unwrap();
        let config = LoraConfig::default();
        let lora = LoraParameters::new(&config, tuning.config(), 1).unwrap();
        let items = [item(&[30, 9]), item(&[20, 40]), item(&[12, 13])];
        let loss = |_: usize, l: &[Vec<f32>]| crate::objectives::dpo([&l[0], &l[1]], [0.0; 2], 0.1);
        let output = Output::LogProbs { temperature: 1.0 };
        let mut gradient = |graphs| {
            tuning.graphs = graphs;
            tuning.gradient(&lora, &items, output, &loss).unwrap()
        };
        let kept = gradient(GRAPHS);
        assert!(kept.values.iter().any(|v| *v != 0.0));
        let again = gradient(0);
        let length = |values: &[f32]| values.iter().map(|v| v * v).sum::<f32>().sqrt();
        let pairs = kept.values.iter().zip(&again.values);
        let off: Vec<f32> = pairs.map(|(a, b)| a - b).collect();
        let off = length(&off) / length(&kept.values);
        assert!(off < 1e-6, "{off:e}");
        for (a, b) in kept.losses.iter().zip(&again.losses) {
            assert!((a - b).abs() < 1e-6, "{a} {b}");
        }
    }
}
