//! GGUF files, written byte by byte.

/// Writes a GGUF file byte by byte.
#[derive(Clone)]
pub struct Gguf {
    pub tensor_count: Option<u64>,
    pub metadata: Vec<(String, Vec<u8>)>,
    /// Name, shape as stored, offset; all in f32.
    pub tensors: Vec<(String, Vec<u64>, u64)>,
    pub data: Vec<u8>,
}

pub fn text(s: &str) -> Vec<u8> {
    [&(s.len() as u64).to_le_bytes(), s.as_bytes()].concat()
}

pub fn string(s: &str) -> Vec<u8> {
    [&8u32.to_le_bytes()[..], &text(s)].concat()
}

pub fn number(v: u32) -> Vec<u8> {
    [4u32.to_le_bytes(), v.to_le_bytes()].concat()
}

pub fn strings(items: &[String]) -> Vec<u8> {
    let head = [
        &9u32.to_le_bytes()[..],
        &8u32.to_le_bytes(),
        &(items.len() as u64).to_le_bytes(),
    ];
    [head.concat(), items.iter().flat_map(|s| text(s)).collect()].concat()
}

impl Gguf {
    /// A LLaMA of one layer, width 8, two heads, over 20 single-letter tokens.
    pub fn pico() -> Self {
        let letters: Vec<String> = ('a'..='t').map(|c| c.to_string()).collect();
        let metadata = [
            ("general.architecture", string("llama")),
            ("llama.embedding_length", number(8)),
            ("llama.feed_forward_length", number(12)),
            ("llama.block_count", number(1)),
            ("llama.attention.head_count", number(2)),
            ("llama.context_length", number(32)),
            ("tokenizer.ggml.model", string("gpt2")),
            ("tokenizer.ggml.pre", string("gpt-2")),
            ("tokenizer.ggml.tokens", strings(&letters)),
            ("tokenizer.ggml.merges", strings(&["a b".into()])),
            ("tokenizer.ggml.eos_token_id", number(19)),
        ];
        let mut file = Self {
            tensor_count: None,
            metadata: metadata.into_iter().map(|(k, v)| (k.into(), v)).collect(),
            tensors: vec![],
            data: vec![],
        };
        file.metadata[8].1 = strings(&[&letters[..18], &["ab".into(), "t".into()]].concat());
        for (name, shape) in [
            ("token_embd.weight", vec![8, 20]),
            ("output_norm.weight", vec![8]),
            ("blk.0.attn_norm.weight", vec![8]),
            ("blk.0.ffn_norm.weight", vec![8]),
            ("blk.0.attn_q.weight", vec![8, 8]),
            ("blk.0.attn_k.weight", vec![8, 8]),
            ("blk.0.attn_v.weight", vec![8, 8]),
            ("blk.0.attn_output.weight", vec![8, 8]),
            ("blk.0.ffn_gate.weight", vec![8, 12]),
            ("blk.0.ffn_up.weight", vec![8, 12]),
            ("blk.0.ffn_down.weight", vec![12, 8]),
        ] {
            file.tensors
                .push((name.into(), shape.clone(), file.data.len() as u64));
            for i in 0..shape.iter().product::<u64>() {
                file.data
                    .extend((((i * 37 % 19) as f32 - 9.0) / 30.0).to_le_bytes());
            }
            file.data.resize(file.data.len().next_multiple_of(32), 0);
        }
        file
    }

    pub fn set(&mut self, key: &str, value: Vec<u8>) {
        self.metadata.iter_mut().find(|(k, _)| k == key).unwrap().1 = value;
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut out = [&b"GGUF"[..], &3u32.to_le_bytes()].concat();
        out.extend(
            self.tensor_count
                .unwrap_or(self.tensors.len() as u64)
                .to_le_bytes(),
        );
        out.extend((self.metadata.len() as u64).to_le_bytes());
        for (key, value) in &self.metadata {
            out.extend(text(key));
            out.extend(value);
        }
        for (name, shape, offset) in &self.tensors {
            out.extend(text(name));
            out.extend((shape.len() as u32).to_le_bytes());
            shape.iter().for_each(|n| out.extend(n.to_le_bytes()));
            out.extend(0u32.to_le_bytes());
            out.extend(offset.to_le_bytes());
        }
        out.resize(out.len().next_multiple_of(32), 0);
        out.extend(&self.data);
        out
    }
}
