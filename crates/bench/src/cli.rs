//! The command line: what can be said to `mope`, and words that it had for it before.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use lm::Format;
use lm::save::Precision;

use harness::config::renamed;
use harness::store::shard::Shard;
use harness::sweep::Setting;

/// Compares ways to personalise a language model without retraining it for each person.
#[derive(Debug, Parser)]
#[command(
    name = "mope",
    version,
    after_help = "Exit codes: 0 done, 1 failed, 2 bad usage or config.\n\
                  Models are cached in ${MOPE_CACHE:-~/.cache/mope}; MOPE_MODELS names a registry of your own."
)]
pub struct Cli {
    /// Print one JSON document on stdout and nothing else there; {"error": …} if the command fails
    #[arg(long, global = true)]
    pub json: bool,
    /// Device, as in configs: Cpu (default), BurnFlex, Libtorch, Wgpu(Cpu), Cuda(0), …; replaces the config's
    #[arg(long, global = true, value_name = "DEVICE")]
    pub device: Option<String>,
    /// Seed of all randomness; replaces the config's
    #[arg(long, global = true, value_name = "N")]
    pub seed: Option<u64>,
    /// Number format of models: F32, Bf16, Q8, Q4; replaces the config's. `mope bench` takes several
    #[arg(long, global = true, value_name = "FORMAT", value_delimiter = ',', value_parser = format)]
    pub format: Vec<Format>,
    #[command(subcommand)]
    pub command: Command,
}

/// Number formats of models.
pub const FORMATS: [Format; 4] = [Format::F32, Format::Bf16, Format::Q8, Format::Q4];

fn format(text: &str) -> Result<Format, String> {
    named(text, &FORMATS)
}

fn precision(text: &str) -> Result<Precision, String> {
    named(text, &[Precision::F32, Precision::F16, Precision::Bf16])
}

/// The one of several values that is written so, whatever the case.
fn named<T: Copy + std::fmt::Debug>(text: &str, known: &[T]) -> Result<T, String> {
    let name = |value: &T| format!("{value:?}");
    let value = known.iter().find(|v| name(v).eq_ignore_ascii_case(text));
    value.copied().ok_or_else(|| {
        let names: Vec<String> = known.iter().map(name).collect();
        format!("known: {}", names.join(", "))
    })
}

/// A setting of a field; fields that have other names by now are known by both.
fn setting(text: &str) -> Result<Setting, String> {
    let words = [
        ("weights", "format"),
        ("sampling_weights", "sampling_format"),
    ];
    for (old, new) in words {
        if let Some(values) = text.strip_prefix(old).filter(|v| v.starts_with('=')) {
            renamed("--set: ", old, new);
            return format!("{new}{values}").parse();
        }
    }
    text.parse()
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run an experiment: generate, score, compare, report. An interrupted run resumes
    #[command(
        after_help = "Example: mope run experiments/quickstart/quickstart.ron\n\n\
                      The run folder gets manifest.json, generations/*.parquet, scores/*.parquet,\n\
                      tables/*.{csv,md,tex,parquet}, plots/*.{svg,png} and report.html. Ctrl-C, or whatever\n\
                      else ends the process, loses at most the batch in flight; all finished ones stay in\n\
                      generations/, and the same command resumes behind them. Responses that a\n\
                      neighbouring run folder has already are taken from there.\n\n\
                      --set generation.sampling.temperature=0.5,0.7 --set seed=1,2 makes four runs in\n\
                      runs/NAME/temperature=0.5,seed=1 and so on. --shard 2/4 makes the second of four\n\
                      parts, perhaps on another machine; when all are done, run it without."
    )]
    Run(RunArgs),
    /// Train an expert, a reward model, a classifier or a PCM. An interrupted training resumes, to the same result
    #[command(
        after_help = "Example: mope train experiments/experts/friendly.ron\n\n\
                      The folder gets adapter/ (as PEFT saves it), checkpoint.safetensors, metrics.*,\n\
                      plots/*.{svg,png}, samples.md and manifest.json.\n\n\
                      --set seed=1,2,3 makes three trainings, in runs/train/NAME/seed=1 and so on;\n\
                      --set recipe.Pcm.settings.kl=0.1 replaces one field."
    )]
    Train(TrainArgs),
    /// Generate one response and stream it
    #[command(after_help = "Examples:\n  \
                      mope generate --model smollm2-135m-instruct --prompt 'Why is the sky blue?'\n  \
                      mope generate --config experiments/quickstart/quickstart.ron --strategy pcm \\\n    \
                      --preference 'concise=0.7,friendly=0.3' --prompt 'Why is the sky blue?' --show-weights")]
    Generate(GenerateArgs),
    /// Log-probabilities (nats) of a given response, one per token
    #[command(
        after_help = "Example: mope score --model smollm2-135m-instruct --raw \\\n    \
                      --prompt 'The capital of France is' --response ' Paris.'"
    )]
    Score(ScoreArgs),
    /// Compare the same strategies in several runs: backends, seeds, versions
    #[command(
        after_help = "Example: mope compare runs/backends/Cpu runs/backends/Libtorch\n\n\
                      Differences are against the first run, paired on prompt, preference and sample. What the\n\
                      runs were made from is listed where it differs."
    )]
    Compare {
        /// Run folders
        #[arg(required = true)]
        runs: Vec<PathBuf>,
        /// Writes comparison.{csv,md,tex,parquet} and differing.json into this folder
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,
    },
    /// Ask judges which of two responses is better: models behind servers, local models, reward models
    #[command(
        after_help = "Example: mope judge runs/quickstart experiments/judges/judges.ron\n\n\
                      Every pair is asked in both orders. Verdicts go to judgements/*.jsonl in the run folder as\n\
                      they come, with the raw replies; the same command asks only what is missing."
    )]
    Judge {
        /// The run folder
        run: PathBuf,
        /// Judges and criteria, in RON
        file: PathBuf,
    },
    /// Let people compare: blinded pairs out, their answers in
    #[command(subcommand)]
    Study(StudyCommand),
    /// Make tables, plots and report again from the rows of a run folder
    Report {
        /// The run folder
        dir: PathBuf,
    },
    /// Fetch a registered model, or a model or adapter of the hub as it is by now, into the cache and print its path
    #[command(after_help = "Examples:\n  \
                      mope fetch smollm2-135m-instruct\n  \
                      mope fetch HuggingFaceTB/SmolLM2-135M-Instruct@main\n\n\
                      The hub's files go into the hub's own cache (HF_HOME, HF_HUB_CACHE); HF_TOKEN, HF_ENDPOINT and\n\
                      HF_HUB_OFFLINE mean what they mean to Python's huggingface_hub.")]
    Fetch {
        /// Name in the registry, or owner/name on the hub, perhaps with @revision
        name: String,
    },
    /// Say what a model file, a model folder, an adapter folder or a PCM folder holds
    Inspect {
        /// A GGUF file, a Hugging Face folder, a PEFT folder or the folder of a PCM
        path: PathBuf,
    },
    /// Token ids and pieces of a text, special tokens included as the model wants them
    Tokenize {
        /// Registered name, path or id of the hub (owner/name)
        #[arg(long, value_name = "NAME|PATH")]
        model: String,
        /// The text
        #[arg(long, allow_hyphen_values = true)]
        text: String,
        /// Add no special tokens around the text
        #[arg(long)]
        plain: bool,
    },
    /// Check an experiment file and say what it would do, fetch and take of memory, without loading a model
    Check {
        /// The experiment
        file: PathBuf,
        /// Load the experts, run one token, and say how each changes the distribution
        #[arg(long)]
        probe: bool,
    },
    /// Write a model as a Hugging Face folder, an adapter merged into it; or rows of a run for other programs
    #[command(after_help = "Examples:\n  \
                      mope export --model smollm2-135m-instruct --adapter runs/a/experts/friendly \\\n    \
                      --out friendly-135m\n  \
                      mope export runs/quickstart --rows pairs --out pairs.jsonl\n\n\
                      transformers reads the folder, and so does every command of this program. A GGUF model\n\
                      is written in full numbers, its tokenizer as tokenizer.json.")]
    Export(ExportArgs),
    /// Write preference pairs of other tools as trainings here read them
    #[command(
        after_help = "Example: mope import train.parquet --out pairs.jsonl\n\n\
                            Columns: chosen and rejected (texts, or conversations of one question), prompt."
    )]
    Import {
        /// `.parquet`, `.csv` or `.jsonl`
        file: PathBuf,
        /// New file of JSON lines
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
    /// Merge the parameters of several experts into one, and write it as PEFT or Hugging Face folder
    #[command(after_help = "Examples:\n  \
                      mope merge --model smollm2-135m-instruct --expert friendly-lora=0.7 --expert concise-lora=0.3 \\\n    \
                      --out soup\n  \
                      mope merge --model base --expert a=0.5 --expert b=0.5 --method 'Ties(density: 0.3)' --out ties\n  \
                      mope merge --config experiment.ron --strategy soup --preference both --out soup\n\n\
                      Methods: Soup, TaskArithmetic, Slerp, Ties, Dare, Della, Breadcrumbs, ModelStock, Ram, with\n\
                      their parameters as in configs. Soups and task arithmetic of adapters become an adapter,\n\
                      everything else a whole model.")]
    Merge(MergeArgs),
    /// Measure how fast mixtures decode, how fast adapters and PCMs train, and what number formats cost
    #[command(
        args_conflicts_with_subcommands = true,
        after_help = "Example: mope bench decode --experts 1,3,8 --sequences 1,16 --format Q8,Q4\n\n\
                      Figures are medians; those of a shared machine vary, so compare only what one run measured."
    )]
    Bench(BenchArgs),
    /// List the devices of this build
    Devices,
    /// Print completions for a shell
    #[command(
        after_help = "Example: mope completions bash > ~/.local/share/bash-completion/completions/mope"
    )]
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
}

#[derive(Debug, Subcommand)]
pub enum StudyCommand {
    /// Draw pairs of responses; write study.html, which raters open offline, pairs.csv and key.json
    Export {
        /// The run folder
        run: PathBuf,
        /// Folder of the study
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
        /// Pairs that a rater sees [default: 40, about half an hour]
        #[arg(
            long,
            value_name = "N",
            default_value_t = 40,
            hide_default_value = true,
            value_parser = positive
        )]
        pairs: usize,
        /// Strategies that are compared [default: all]
        #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
        strategies: Vec<String>,
    },
    /// Analyse what raters exported: sign tests, Bradley-Terry strengths, Krippendorff's α
    Import {
        /// Folder of the study
        study: PathBuf,
        /// Answers, one file a rater
        #[arg(required = true)]
        answers: Vec<PathBuf>,
    },
}

#[derive(Debug, Args)]
pub struct RunArgs {
    /// The experiment, in RON
    pub file: PathBuf,
    /// Run folder [default: runs/NAME]
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Replaces the prompt set: JSON lines with a `prompt` field, or text with one prompt a line
    #[arg(long, value_name = "FILE")]
    pub prompts: Option<PathBuf>,
    /// Replaces a field, or makes a run for each of several values: seed=1,2,3
    #[arg(long, value_name = "FIELD=VALUE,…", value_parser = setting)]
    pub set: Vec<Setting>,
    /// Write hypotheses, seeds and hashes to a new file before anything is generated
    #[arg(long, value_name = "FILE", conflicts_with = "shard")]
    pub preregister: Option<PathBuf>,
    /// Take a run folder that another experiment made; its rows are moved to superseded/
    #[arg(long)]
    pub replace: bool,
    /// Generate one of several equal parts and stop; a run without it puts the parts together
    #[arg(long, value_name = "PART/OF")]
    pub shard: Option<Shard>,
}

#[derive(Debug, Args)]
pub struct TrainArgs {
    /// The training, in RON
    pub file: PathBuf,
    /// Folder of its results [default: runs/train/NAME]
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Replaces a field, or makes a training for each of several values: seed=1,2,3
    #[arg(long, value_name = "FIELD=VALUE,…", value_parser = setting)]
    pub set: Vec<Setting>,
    /// Stop after this many more iterations or steps; the same command resumes
    #[arg(long, value_name = "N", value_parser = positive)]
    pub stop_after: Option<usize>,
    /// Say what would be trained and what it takes of memory, and stop
    #[arg(long)]
    pub dry_run: bool,
}

/// The preference that a strategy of a config serves.
#[derive(Debug, Args)]
pub struct Stated {
    /// Importance by direction, "concise=0.7,friendly=0.3", or the name of a preference of the config
    #[arg(long, value_name = "WEIGHTS|NAME", requires = "config")]
    pub preference: Option<String>,
    /// The preference in words, for strategies that read it [default: made from the weights]
    #[arg(long, value_name = "TEXT", requires = "preference")]
    pub preference_text: Option<String>,
}

/// Which model or mixture answers, and what.
#[derive(Debug, Args)]
pub struct Selection {
    /// Registered name, path or id of the hub (owner/name); with --config, replaces the config's base model
    #[arg(long, value_name = "NAME|PATH", required_unless_present = "config")]
    pub model: Option<String>,
    /// PEFT folder on top of the model, or its id on the hub
    #[arg(long, value_name = "DIR", conflicts_with = "config")]
    pub adapter: Option<PathBuf>,
    /// Experiment whose experts and strategies are used
    #[arg(long, value_name = "FILE.ron", requires = "strategy")]
    pub config: Option<PathBuf>,
    /// Strategy of the config
    #[arg(long, value_name = "NAME", requires = "config")]
    pub strategy: Option<String>,
    #[command(flatten)]
    pub stated: Stated,
    /// What is asked; - reads it from stdin
    #[arg(
        long,
        value_name = "TEXT",
        allow_hyphen_values = true,
        required_unless_present = "messages"
    )]
    pub prompt: Option<String>,
    /// A conversation instead: a JSON list of {"role", "content"}
    #[arg(long, value_name = "JSON", conflicts_with_all = ["prompt", "raw"])]
    pub messages: Option<String>,
    /// Skip the chat template: the prompt goes in as it is
    #[arg(long)]
    pub raw: bool,
}

#[derive(Debug, Args)]
pub struct GenerateArgs {
    #[command(flatten)]
    pub selection: Selection,
    /// Longest response in tokens [default: the config's, else 128]
    #[arg(long, value_name = "N", value_parser = positive)]
    pub max_new_tokens: Option<usize>,
    /// 0 is greedy [default: the config's, else 0]
    #[arg(long, value_name = "T")]
    pub temperature: Option<f32>,
    /// Keep the k likeliest tokens; 0 keeps all
    #[arg(long, value_name = "K")]
    pub top_k: Option<usize>,
    /// Keep the likeliest tokens that hold this probability
    #[arg(long, value_name = "P")]
    pub top_p: Option<f32>,
    /// Keep tokens with this fraction of the best one's probability
    #[arg(long, value_name = "P")]
    pub min_p: Option<f32>,
    /// Colour each token by its leading expert
    #[arg(long)]
    pub show_weights: bool,
    /// `--show-weights`, as it was called before
    #[arg(long, hide = true)]
    weights: bool,
}

impl GenerateArgs {
    /// Takes words that options had before for what they are called now.
    pub fn rename(&mut self) {
        if self.weights {
            renamed("mope: ", "generate --weights", "generate --show-weights");
            self.show_weights = true;
        }
    }
}

#[derive(Debug, Args)]
pub struct ScoreArgs {
    #[command(flatten)]
    pub selection: Selection,
    /// The response whose tokens are scored
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub response: String,
}

/// Rows of a run for other programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum RowsOf {
    Scores,
    Pairs,
    LmEval,
}

#[derive(Debug, Args)]
pub struct ExportArgs {
    /// Run folder, whose rows are written instead of a model
    #[arg(requires = "rows", conflicts_with_all = ["model", "adapter", "precision"])]
    pub run: Option<PathBuf>,
    /// What of the run: all scores beside their responses (.csv, .parquet or .jsonl), pairs of the best and the worst
    /// response by utility (JSON lines), or a folder for each strategy in lm-eval's layout
    #[arg(long, value_name = "ROWS", requires = "run", value_enum)]
    pub rows: Option<RowsOf>,
    /// Registered name, path or id of the hub (owner/name)
    #[arg(long, value_name = "NAME|PATH", required_unless_present = "run")]
    pub model: Option<String>,
    /// PEFT folder that is merged into the weights
    #[arg(long, value_name = "DIR")]
    pub adapter: Option<PathBuf>,
    /// New folder or file; one that holds something is refused
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Number format of the written tensors: F32, F16, Bf16
    #[arg(long, value_name = "FORMAT", default_value = "F32", value_parser = precision)]
    pub precision: Precision,
}

#[derive(Debug, Args)]
pub struct MergeArgs {
    /// Base model, by registered name or path
    #[arg(long, value_name = "NAME|PATH", required_unless_present = "config")]
    pub model: Option<String>,
    /// PEFT folder or model with its weight; several times
    #[arg(
        long,
        value_name = "PATH=WEIGHT",
        required_unless_present = "config",
        conflicts_with = "config"
    )]
    pub expert: Vec<String>,
    /// How, as in configs
    #[arg(
        long,
        value_name = "METHOD",
        default_value = "Soup()",
        conflicts_with = "config"
    )]
    pub method: String,
    /// Experiment whose experts are merged
    #[arg(long, value_name = "FILE.ron", requires = "strategy")]
    pub config: Option<PathBuf>,
    /// Strategy of the config, of kind Merge
    #[arg(long, value_name = "NAME", requires = "config")]
    pub strategy: Option<String>,
    #[command(flatten)]
    pub stated: Stated,
    /// New folder; one that holds something is refused
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Number format of the written tensors: F32, F16, Bf16
    #[arg(long, value_name = "FORMAT", default_value = "F32", value_parser = precision)]
    pub precision: Precision,
    /// Write a whole model even where an adapter would do
    #[arg(long)]
    pub whole: bool,
}

#[derive(Debug, Args)]
pub struct BenchArgs {
    #[command(subcommand)]
    command: Option<BenchCommand>,
    #[command(flatten)]
    decode: DecodeArgs,
    #[command(flatten)]
    old: OldBenchArgs,
}

/// Options that chose what `mope bench` measures, before it had verbs.
#[derive(Debug, Args)]
struct OldBenchArgs {
    #[arg(long, hide = true)]
    train: bool,
    #[arg(long, hide = true, conflicts_with_all = ["train", "records"])]
    accuracy: Option<PathBuf>,
    #[arg(long, hide = true, conflicts_with = "train")]
    records: bool,
    #[arg(long, hide = true, value_delimiter = ',', value_parser = format)]
    weights: Vec<Format>,
}

impl BenchArgs {
    /// What is measured. Words that options had before are taken for what they are called now: `formats` gets the
    /// number formats that were given under another name.
    pub fn command(self, formats: &mut Vec<Format>) -> BenchCommand {
        let Self {
            command,
            decode,
            old,
        } = self;
        if let Some(command) = command {
            return command;
        }
        if !old.weights.is_empty() {
            renamed("mope: ", "bench --weights", "bench --format");
            *formats = old.weights;
        }
        let DecodeArgs {
            workload,
            experts,
            strategy,
            adapters,
        } = decode;
        match (old.accuracy, old.train, old.records) {
            (Some(text), ..) => {
                renamed("mope: ", "bench --accuracy TEXT", "bench accuracy TEXT");
                let Workload {
                    model, rank, out, ..
                } = workload;
                BenchCommand::Accuracy(AccuracyArgs {
                    text,
                    model,
                    adapters,
                    rank,
                    out,
                })
            }
            (_, true, _) => {
                renamed("mope: ", "bench --train", "bench train");
                BenchCommand::Train(workload)
            }
            (_, _, true) => {
                renamed("mope: ", "bench --records", "bench records");
                BenchCommand::Records(RecordsArgs { workload, experts })
            }
            _ => {
                renamed("mope: ", "bench", "bench decode");
                BenchCommand::Decode(DecodeArgs {
                    workload,
                    experts,
                    strategy,
                    adapters,
                })
            }
        }
    }
}

#[derive(Debug, Subcommand)]
pub enum BenchCommand {
    /// Decoding and prefill of adapter mixtures; lists such as 1,3,8 measure every combination
    #[command(
        after_help = "Example: mope bench decode --experts 1,3,8 --sequences 1,16 --format Q8,Q4\n\n\
                      All four number formats are measured where --format names none. Adapters are random, of\n\
                      --rank on q, v, o and down, where --adapters names none."
    )]
    Decode(DecodeArgs),
    /// LoRA steps, --sequences a batch, in F32 and Bf16
    Train(Workload),
    /// An epoch of a PCM's training from records, beside running the experts again, in F32
    Records(RecordsArgs),
    /// What number formats do to distributions: each compared with F32 on a text and on greedy mixtures
    Accuracy(AccuracyArgs),
}

/// What a measurement runs over.
#[derive(Debug, Args)]
pub struct Workload {
    /// Registered name, path or id of the hub (owner/name)
    #[arg(
        long,
        value_name = "NAME|PATH",
        default_value = "smollm2-135m-instruct"
    )]
    pub model: String,
    /// A published model's shape with weights at random instead, as llama-3.1-8b: nothing is fetched
    #[arg(long, value_name = "NAME", conflicts_with = "model", value_parser = shape)]
    pub shape: Option<String>,
    /// Sequences that run together
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "1,4,16",
          value_parser = positive)]
    pub sequences: Vec<usize>,
    /// Length of the prompt
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = positive)]
    pub prompt_tokens: usize,
    /// Length of the response
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = several)]
    pub new_tokens: usize,
    /// Rank of random adapters
    #[arg(long, value_name = "R", default_value_t = 8, value_parser = positive)]
    pub rank: usize,
    /// Repetitions, of which the median counts
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = positive)]
    pub repeat: usize,
    /// Write the table there, and a plot where there is one
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct DecodeArgs {
    #[command(flatten)]
    pub workload: Workload,
    /// Experts that are mixed; 1 is one adapter alone
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "1,2,3,6,8",
          value_parser = positive)]
    pub experts: Vec<usize>,
    /// How experts are mixed: fixed, fixed_log, mod_forward, dera, mato, pack_llm, pcm, gates; pcm_statistics, gates_statistics
    #[arg(
        long,
        value_name = "NAME",
        value_delimiter = ',',
        default_value = "fixed"
    )]
    pub strategy: Vec<String>,
    /// Adapters to mix, in turn as often as needed; random ones where none are named
    #[arg(long, value_name = "DIR", value_delimiter = ',')]
    pub adapters: Vec<PathBuf>,
}

#[derive(Debug, Args)]
pub struct RecordsArgs {
    #[command(flatten)]
    pub workload: Workload,
    /// Experts that the PCM mixes
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "1,2,3,6,8",
          value_parser = positive)]
    pub experts: Vec<usize>,
}

#[derive(Debug, Args)]
pub struct AccuracyArgs {
    /// The text, at least 500 tokens
    #[arg(value_name = "TEXT")]
    pub text: PathBuf,
    /// Registered name, path or id of the hub (owner/name)
    #[arg(
        long,
        value_name = "NAME|PATH",
        default_value = "smollm2-135m-instruct"
    )]
    pub model: String,
    /// Adapters of the mixture, in turn; random ones where none are named
    #[arg(long, value_name = "DIR", value_delimiter = ',')]
    pub adapters: Vec<PathBuf>,
    /// Rank of random adapters
    #[arg(long, value_name = "R", default_value_t = 8, value_parser = positive)]
    pub rank: usize,
    /// Write the table there
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
}

impl Workload {
    /// The model that is measured.
    pub fn model(&self) -> String {
        match &self.shape {
            Some(shape) => format!("{}{shape}", lm::shape::SCHEME),
            None => self.model.clone(),
        }
    }
}

fn shape(text: &str) -> Result<String, String> {
    let known: Vec<&str> = lm::shape::names().collect();
    let name = text.to_ascii_lowercase();
    match known.contains(&name.as_str()) {
        true => Ok(name),
        false => Err(format!("known: {}", known.join(", "))),
    }
}

/// Most of anything that is counted on the command line (ours).
const COUNT: usize = 1 << 24;

fn positive(text: &str) -> Result<usize, String> {
    match text.parse().map_err(|_| "not a number".to_string())? {
        0 => Err("at least 1".into()),
        number if number > COUNT => Err(format!("at most {COUNT}")),
        number => Ok(number),
    }
}

fn several(text: &str) -> Result<usize, String> {
    positive(text).and_then(|n| {
        if n < 2 {
            Err("at least 2".into())
        } else {
            Ok(n)
        }
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    /// What `mope bench` measures with these arguments, and the number formats that it gets.
    fn bench(arguments: &[&str]) -> (BenchCommand, Vec<Format>) {
        let cli = Cli::try_parse_from([&["mope", "bench"], arguments].concat()).unwrap();
        let mut formats = cli.format;
        let Command::Bench(args) = cli.command else {
            panic!("{:?}", cli.command)
        };
        (args.command(&mut formats), formats)
    }

    #[test]
    fn flags_that_chose_a_measurement_mean_the_verbs() {
        for (old, new) in [
            ("", "decode"),
            (
                "--experts 1,3 --rank 4 --strategy pcm --adapters a,b",
                "decode --experts 1,3 --rank 4 --strategy pcm --adapters a,b",
            ),
            (
                "--train --sequences 2 --out o",
                "train --sequences 2 --out o",
            ),
            (
                "--records --experts 6 --new-tokens 9",
                "records --experts 6 --new-tokens 9",
            ),
            (
                "--accuracy t.txt --adapters a --model m",
                "accuracy t.txt --adapters a --model m",
            ),
            ("--weights q8,F32", "decode --format Q8,f32"),
            ("--train --weights F32", "train --format F32"),
            ("--format Q4", "decode --format Q4"),
        ] {
            let words = |text: &'static str| text.split_whitespace().collect::<Vec<_>>();
            let (old, new) = (bench(&words(old)), bench(&words(new)));
            assert_eq!(format!("{old:?}"), format!("{new:?}"));
        }
        for wrong in [
            &["--train", "--records"][..],
            &["--experts", "3", "decode"],
            &["train", "--experts", "3"],
            &["decode", "--format", "Q5"],
            &["accuracy"],
        ] {
            let all = [&["mope", "bench"], wrong].concat();
            assert!(Cli::try_parse_from(all).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn settings_know_fields_by_both_names() {
        let sets = |text: &str| format!("{:?}", setting(text).unwrap());
        assert_eq!(sets("weights=F32,Bf16"), sets("format=F32,Bf16"));
        assert_eq!(sets("sampling_weights=Q8"), sets("sampling_format=Q8"));
        assert_ne!(
            sets("recipe.weights=1"),
            sets("recipe.format=1"),
            "other fields keep their names"
        );
    }
}
