//! The Preference Control Model itself: what it reads, its logits, their gradient, its files.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use kernels::dense::{View, product};
use lm::tuning::{Blocks, Layout, normal};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use crate::config::CONFIG;
use crate::{Error, PcmConfig, PreferenceInput, Result};

/// What the PCM reads about a response before and while it is written.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Context {
    /// Token ids of the preference in words and then of the prompt; at least one.
    pub tokens: Vec<u32>,
    /// Importance of each of the PCM's experts, summing to 1; 0 where the preference does not name it.
    pub shares: Vec<f32>,
    /// Statistics of the experts at each step, `[steps, width]`; empty where the PCM reads none.
    pub statistics: Vec<f32>,
}

/// A Preference Control Model.
///
/// ```text
/// x_t = E(token_t) P + s W + f_t S        z_t = H · blocks(x)_t + 60 D [s, 1]
/// ```
///
/// with the base's frozen embedding `E`, each row brought to mean square 1, importances `s`, statistics
/// `f_t`. A direct layer `D` from preference to logits, scaled by 60, learns the context-free part faster, which is
/// the larger part of what there is to learn. [`Output`](crate::Output) says what the logits `z_t` do; experts that
/// the preference does not name are at −∞.
#[derive(Debug, Clone)]
pub struct Pcm {
    config: PcmConfig,
    blocks: Blocks,
    pub(crate) places: Places,
    values: Vec<f32>,
    /// Embeddings of its own, `[vocabulary, embedding]`; empty where it reads the base's.
    pub(crate) table: Arc<Vec<f32>>,
}

/// Where each matrix lies among all parameters.
#[derive(Debug, Clone)]
pub(crate) struct Places {
    pub blocks: Range<usize>,
    /// `[embedding, hidden]`.
    pub projection: Range<usize>,
    /// `[experts, hidden]`.
    pub preference: Range<usize>,
    /// `[statistics, hidden]`.
    pub statistics: Range<usize>,
    /// `[experts, hidden]`.
    head: Range<usize>,
    /// `[experts, experts + 1]`.
    preference_bias: Range<usize>,
}

impl Places {
    fn new(config: &PcmConfig) -> Self {
        let (n, d) = (config.experts.len(), config.hidden);
        let blocks = 0..Layout::new(&config.decoder()).len();
        let after = |before: &Range<usize>, size: usize| before.end..before.end + size;
        let projection = after(&blocks, config.embedding * d);
        let preference = after(&projection, n * d);
        let statistics = after(&preference, config.statistics_width() * d);
        let head = after(&statistics, n * d);
        let preference_bias = after(&head, n * (n + 1));
        Self {
            blocks,
            projection,
            preference,
            statistics,
            head,
            preference_bias,
        }
    }
}

/// The gradient of a sum of losses.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PcmGradient {
    /// By all parameters.
    pub values: Vec<f32>,
}

impl Pcm {
    /// A fresh PCM that gives all named experts equal weights: its head and its preference bias are zero.
    ///
    /// # Errors
    /// A config that makes no sense.
    pub fn new(config: &PcmConfig, seed: u64) -> Result<Self> {
        config.validate()?;
        let blocks = Blocks::random(&config.decoder(), seed)?;
        let mut pcm = Self::over(config, blocks);
        let (places, values) = (&pcm.places, &mut pcm.values);
        values[places.blocks.clone()].copy_from_slice(&pcm.blocks.parameters());
        let mut fill = |range: &Range<usize>, sd: f64, name: &str| {
            let parts = [&seed.to_le_bytes()[..], name.as_bytes()];
            values[range.clone()].copy_from_slice(&normal(range.len(), sd, &parts));
        };
        // Rows of mean square 1 give a stream of the same size.
        fill(
            &places.projection,
            (config.embedding as f64).powf(-0.5),
            "projection",
        );
        fill(&places.preference, 1.0, "preference");
        fill(&places.statistics, 0.3, "statistics");
        Ok(pcm)
    }

    /// With parameters of zero outside of the blocks.
    pub(crate) fn over(config: &PcmConfig, blocks: Blocks) -> Self {
        let places = Places::new(config);
        Self {
            config: config.clone(),
            blocks,
            values: vec![0.0; places.preference_bias.end],
            places,
            table: Arc::default(),
        }
    }

    /// Its shape.
    pub fn config(&self) -> &PcmConfig {
        &self.config
    }

    /// All parameters in one row.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// Takes all parameters.
    ///
    /// # Panics
    /// When there are more or fewer.
    pub fn set_values(&mut self, values: &[f32]) {
        self.values.copy_from_slice(values);
        self.blocks
            .set_parameters(&values[self.places.blocks.clone()]);
    }

    /// The blocks, for decoding.
    pub(crate) fn blocks(&self) -> &Blocks {
        &self.blocks
    }

    /// `[experts, hidden]`.
    pub(crate) fn head(&self) -> &[f32] {
        &self.values[self.places.head.clone()]
    }

    /// Adds the preference bias to logits `[rows, experts]`, and masks experts that the preference does not name.
    pub(crate) fn add_preference(&self, logits: &mut [f32], shares: &[f32]) {
        let n = self.config.experts.len();
        if self.config.preference != PreferenceInput::Text {
            let layer = &self.values[self.places.preference_bias.clone()];
            let bias = |row: &[f32]| {
                let pairs = row.iter().zip(shares.iter().chain([&1.0]));
                PREFERENCE_BIAS_SCALE * pairs.map(|(d, s)| d * s).sum::<f32>()
            };
            let biases: Vec<f32> = layer.chunks(n + 1).map(bias).collect();
            for row in logits.chunks_mut(n) {
                row.iter_mut().zip(&biases).for_each(|(z, b)| *z += b);
            }
        }
        logits.chunks_mut(n).for_each(|row| mask(row, shares));
    }

    /// Inputs of consecutive rows, `[rows, hidden]`, for embedded tokens `[rows, embedding]`. `statistics`
    /// belong to the last rows.
    pub(crate) fn inputs(
        &self,
        embedded: &[f32],
        rows: usize,
        shares: &[f32],
        statistics: &[f32],
    ) -> Vec<f32> {
        let (c, d) = (&self.config, self.config.hidden);
        let part = |range: &Range<usize>| View::rows(&self.values[range.clone()], d);
        let mut x = vec![0.0; rows * d];
        if c.context {
            let shape = [rows, c.embedding, d];
            let embedded = View::rows(embedded, c.embedding);
            product(
                shape,
                embedded,
                part(&self.places.projection),
                &mut x,
                d,
                false,
                1.0,
            );
        }
        if c.preference != PreferenceInput::Text {
            let mut stated = vec![0.0; d];
            let shape = [1, c.experts.len(), d];
            let shares = View::rows(shares, c.experts.len());
            product(
                shape,
                shares,
                part(&self.places.preference),
                &mut stated,
                d,
                false,
                1.0,
            );
            for row in x.chunks_mut(d) {
                row.iter_mut().zip(&stated).for_each(|(x, s)| *x += s);
            }
        }
        if c.statistics && !statistics.is_empty() {
            let width = c.statistics_width();
            let steps = statistics.len() / width;
            let last = &mut x[(rows - steps) * d..];
            let statistics = View::rows(statistics, width);
            product(
                [steps, width, d],
                statistics,
                part(&self.places.statistics),
                last,
                d,
                true,
                1.0,
            );
        }
        x
    }

    /// Tokens that are read for a response of `steps` tokens: the last one is not read.
    fn rows(context: &Context, response: &[u32]) -> Vec<u32> {
        let read = &response[..response.len().saturating_sub(1)];
        [context.tokens.as_slice(), read].concat()
    }

    /// Logits of the weights at every token of each response, `[tokens, experts]`, teacher-forced; experts
    /// that the preference does not name are at −∞. `embed` gives the base's embedding of a token.
    ///
    /// # Errors
    /// A context without tokens, or shares or statistics of another width.
    pub fn logits(&self, items: &[(&Context, &[u32])], embed: &Embed<'_>) -> Result<Vec<Vec<f32>>> {
        self.check(items)?;
        let inputs = self.all_inputs(items, embed);
        let slices: Vec<&[f32]> = inputs.iter().map(|(x, _)| x.as_slice()).collect();
        let hidden = self.blocks.hidden(&slices);
        let pairs = items.iter().zip(&hidden);
        Ok(pairs
            .map(|(item, hidden)| self.read_out(*item, hidden))
            .collect())
    }

    /// The gradient of a sum of losses. `loss` gets an item's number and its logits and returns the
    /// derivative by them.
    ///
    /// # Errors
    /// Those of [`Self::logits`].
    pub fn gradient(
        &self,
        items: &[(&Context, &[u32])],
        embed: &Embed<'_>,
        loss: impl Fn(usize, &[f32]) -> Vec<f32> + Sync,
    ) -> Result<PcmGradient> {
        self.check(items)?;
        let (n, d) = (self.config.experts.len(), self.config.hidden);
        let inputs = self.all_inputs(items, embed);
        let slices: Vec<&[f32]> = inputs.iter().map(|(x, _)| x.as_slice()).collect();
        let heads = std::sync::Mutex::new(vec![(Vec::new(), Vec::new()); items.len()]);
        let blocks = self.blocks.gradient(&slices, |i, hidden| {
            let d_logits = loss(i, &self.read_out(items[i], hidden));
            let steps = items[i].1.len();
            let first = hidden.len() - steps * d;
            let mut d_hidden = vec![0.0; hidden.len()];
            let d_view = View::rows(&d_logits, n);
            let head = View::rows(self.head(), d);
            product(
                [steps, n, d],
                d_view,
                head,
                &mut d_hidden[first..],
                d,
                false,
                1.0,
            );
            let mut sums = vec![0.0; n];
            for row in d_logits.chunks(n) {
                sums.iter_mut()
                    .zip(row)
                    .for_each(|(sum, d)| *sum += PREFERENCE_BIAS_SCALE * d);
            }
            let mut d_head = vec![0.0; n * d];
            let last = View::rows(&hidden[first..], d);
            product(
                [n, steps, d],
                d_view.transposed(),
                last,
                &mut d_head,
                d,
                false,
                1.0,
            );
            heads.lock().unwrap_or_else(|e| e.into_inner())[i] = (d_head, sums);
            d_hidden
        });
        let mut values = vec![0.0; self.values.len()];
        values[self.places.blocks.clone()].copy_from_slice(&blocks.values);
        let heads = heads.into_inner().unwrap_or_else(|e| e.into_inner());
        for ((d_head, sums), (context, _)) in heads.into_iter().zip(items) {
            let head = values[self.places.head.clone()].iter_mut().zip(d_head);
            head.for_each(|(sum, v)| *sum += v);
            if self.config.preference != PreferenceInput::Text {
                let layer = values[self.places.preference_bias.clone()].chunks_mut(n + 1);
                for (row, sum) in layer.zip(sums) {
                    let shares = context.shares.iter().chain([&1.0]);
                    row.iter_mut().zip(shares).for_each(|(d, s)| *d += sum * s);
                }
            }
        }
        for (((x, embedded), item), d_x) in inputs.iter().zip(items).zip(&blocks.inputs) {
            self.input_gradient(
                x.len() / d,
                embedded,
                item.0,
                item.1.len(),
                d_x,
                &mut values,
            );
        }
        Ok(PcmGradient { values })
    }

    /// Adds the derivatives by what makes the inputs.
    fn input_gradient(
        &self,
        rows: usize,
        embedded: &[f32],
        context: &Context,
        steps: usize,
        d_x: &[f32],
        values: &mut [f32],
    ) {
        let (c, d) = (&self.config, self.config.hidden);
        let d_view = View::rows(d_x, d);
        if c.context {
            let embedded = View::rows(embedded, c.embedding).transposed();
            let out = &mut values[self.places.projection.clone()];
            product([c.embedding, rows, d], embedded, d_view, out, d, true, 1.0);
        }
        if c.preference != PreferenceInput::Text {
            let mut sum = vec![0.0; d];
            for row in d_x.chunks(d) {
                sum.iter_mut().zip(row).for_each(|(s, v)| *s += v);
            }
            let out = &mut values[self.places.preference.clone()];
            for (row, share) in out.chunks_mut(d).zip(&context.shares) {
                row.iter_mut().zip(&sum).for_each(|(o, s)| *o += share * s);
            }
        }
        if c.statistics && !context.statistics.is_empty() {
            let width = c.statistics_width();
            let statistics = View::rows(&context.statistics, width).transposed();
            let last = View::rows(&d_x[(rows - steps) * d..], d);
            let out = &mut values[self.places.statistics.clone()];
            product([width, steps, d], statistics, last, out, d, true, 1.0);
        }
    }

    fn check(&self, items: &[(&Context, &[u32])]) -> Result<()> {
        let c = &self.config;
        for (context, response) in items {
            let statistics = if c.statistics {
                response.len() * c.statistics_width()
            } else {
                0
            };
            if context.tokens.is_empty() || response.is_empty() {
                return Err(Error::EmptyContext);
            }
            if context.shares.len() != c.experts.len() || context.statistics.len() != statistics {
                return Err(Error::Inputs {
                    importances: context.shares.len(),
                    statistics: context.statistics.len(),
                    experts: c.experts.len(),
                    expected: statistics,
                });
            }
            if !context.shares.iter().any(|s| *s > 0.0) {
                return Err(Error::NothingNamed);
            }
        }
        Ok(())
    }

    /// Inputs and embedded tokens of every item.
    fn all_inputs(
        &self,
        items: &[(&Context, &[u32])],
        embed: &Embed<'_>,
    ) -> Vec<(Vec<f32>, Vec<f32>)> {
        let one = |(context, response): &(&Context, &[u32])| {
            let tokens = Self::rows(context, response);
            let embedded = self.embed(&tokens, embed);
            let x = self.inputs(
                &embedded,
                tokens.len(),
                &context.shares,
                &context.statistics,
            );
            (x, embedded)
        };
        items.iter().map(one).collect()
    }

    /// The base's embeddings of tokens, each of mean square 1, or its own as they are, `[tokens, embedding]`.
    pub(crate) fn embed(&self, tokens: &[u32], embed: &Embed<'_>) -> Vec<f32> {
        let width = self.config.embedding;
        let mut out = vec![0.0; tokens.len() * width];
        if !self.config.context {
            return out;
        }
        for (token, row) in tokens.iter().zip(out.chunks_mut(width)) {
            if self.config.origin.is_some() {
                let start = *token as usize * width;
                // Tokens come from the base, whose vocabulary is the same; one from elsewhere reads as nothing.
                if let Some(embedding) = self.table.get(start..start + width) {
                    row.copy_from_slice(embedding);
                }
                continue;
            }
            embed(*token, row);
            let mean = row.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / width as f64;
            let inverse = (1.0 / (mean + 1e-12).sqrt()) as f32;
            row.iter_mut().for_each(|v| *v *= inverse);
        }
        out
    }

    /// Logits of the last rows, one per token of the response.
    fn read_out(&self, (context, response): (&Context, &[u32]), hidden: &[f32]) -> Vec<f32> {
        let (n, d, steps) = (
            self.config.experts.len(),
            self.config.hidden,
            response.len(),
        );
        let last = View::rows(&hidden[hidden.len() - steps * d..], d);
        let mut logits = vec![0.0; steps * n];
        let head = View::rows(self.head(), d).transposed();
        product([steps, d, n], last, head, &mut logits, n, false, 1.0);
        self.add_preference(&mut logits, &context.shares);
        logits
    }

    /// Writes `config.json` and `model.safetensors` into a folder, which is made.
    ///
    /// # Errors
    /// When they cannot be written.
    pub fn save(&self, folder: &Path) -> Result<()> {
        std::fs::create_dir_all(folder).map_err(|e| Error::file(folder, e))?;
        let path = folder.join("model.safetensors");
        let all = [
            ("values", &self.values),
            ("embeddings", self.table.as_ref()),
        ];
        let bytes = all.map(|(name, values)| {
            let bytes = values.iter().flat_map(|v| v.to_le_bytes());
            (name, values.len(), bytes.collect::<Vec<u8>>())
        });
        let mut views = Vec::new();
        for (name, len, bytes) in bytes.iter().filter(|(_, len, _)| *len > 0) {
            let view = TensorView::new(Dtype::F32, vec![*len], bytes);
            views.push((*name, view.map_err(|e| Error::file(&path, e))?));
        }
        let file = safetensors::serialize(views, None);
        let file = file.map_err(|e| Error::file(&path, e))?;
        let config = serde_json::to_string_pretty(&self.config);
        let config = config.map_err(|e| Error::file(folder, e))? + "\n";
        for (name, data) in [("model.safetensors", file), (CONFIG, config.into_bytes())] {
            let (path, beside) = (folder.join(name), folder.join(format!(".{name}")));
            std::fs::write(&beside, data).map_err(|e| Error::file(&beside, e))?;
            std::fs::rename(&beside, &path).map_err(|e| Error::file(&path, e))?;
        }
        Ok(())
    }

    /// Reads a folder that [`Self::save`] wrote.
    ///
    /// # Errors
    /// Missing or damaged files, weights that do not fit the config, NaN and infinity.
    pub fn load(folder: &Path) -> Result<Self> {
        let config = PcmConfig::load(folder)?;
        let path = folder.join("model.safetensors");
        let bytes = lm::load::read_bytes(&path)?;
        let needed = Places::new(&config).preference_bias.end;
        if needed > bytes.len() / 4 {
            let held = bytes.len();
            let message = format!("{held} bytes, the config asks for {needed} numbers in F32");
            return Err(Error::file(&path, message));
        }
        let blocks = Blocks::zeros(&config.decoder());
        let blocks = blocks.map_err(|e| Error::file(&folder.join(CONFIG), e))?;
        let mut pcm = Self::over(&config, blocks);
        let file = SafeTensors::deserialize(&bytes).map_err(|e| Error::file(&path, e))?;
        let read = |name: &str, expected: usize| -> Result<Vec<f32>> {
            let tensor = file.tensor(name).map_err(|e| Error::file(&path, e))?;
            let shape = tensor.shape();
            if tensor.dtype() != Dtype::F32 || shape != [expected] {
                return Err(Error::file(
                    &path,
                    format!(
                        "{name} {shape:?} in {:?}, the config asks for [{expected}] in F32",
                        tensor.dtype()
                    ),
                ));
            }
            let parts = tensor.data().chunks_exact(4);
            let values: Vec<f32> = parts
                .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
                .collect();
            lm::load::mapped::all_finite(&path, name, shape, &values)?;
            Ok(values)
        };
        let values = read("values", pcm.values.len())?;
        if let Some(origin) = &config.origin {
            let size = origin.vocabulary.saturating_mul(config.embedding);
            pcm.table = Arc::new(read("embeddings", size)?);
        }
        pcm.set_values(&values);
        Ok(pcm)
    }
}

/// Writes the base's embedding of a token, `[embedding]`.
pub type Embed<'a> = dyn Fn(u32, &mut [f32]) + Sync + 'a;

/// Scale of the layer from preference to logits: how much faster it learns than its parameters move (ours).
const PREFERENCE_BIAS_SCALE: f32 = 60.0;

/// Takes experts that the preference does not name out of the softmax.
fn mask(logits: &mut [f32], shares: &[f32]) {
    for (logit, share) in logits.iter_mut().zip(shares) {
        if *share == 0.0 {
            *logit = f32::NEG_INFINITY;
        }
    }
}
