//! What columns are called in the report, and what a hover says of them.

/// A column's heading and its definition, by its name in the files; without an entry the heading is the name with
/// spaces.
pub(super) fn term(column: &str) -> Option<(&'static str, &'static str)> {
    Some(match column {
        "strategy" => ("strategy", "A method that answers for a preference."),
        "utility" => (
            "utility",
            "What a response is worth to the preference, from its signed rewards; mean over all responses, with its 95 % \
             interval over prompts.",
        ),
        "difference" => (
            "difference",
            "Mean difference in utility on the same prompt, preference and sample, with its 95 % interval.",
        ),
        "kl_per_response" | "kl" => (
            "KL per response",
            "Kullback-Leibler divergence from the base, summed over a response, in nats: how far a strategy leaves the \
             base. Less is closer. ≤: with what keeping the best of several adds at most. text: −log p of fixed texts \
             under the base.",
        ),
        "gain_per_root" | "a" => (
            "a = Δutility/√KL",
            "Utility gained over the base, divided by the square root of the divergence per response: what leaving the \
             base buys. – where it is not left.",
        ),
        "win_rate" => (
            "win rate",
            "Share of pairs of responses in which this one has the higher utility, a tie half; mean over all other \
             strategies.",
        ),
        "ended" => (
            "ended",
            "Share of responses that end by themselves, before the limit of tokens.",
        ),
        "tokens" => ("tokens", "Mean length of a response."),
        "kl_per_token" => (
            "KL per token",
            "Kullback-Leibler divergence from the base, in nats: all of it over all tokens.",
        ),
        "strength" => (
            "strength",
            "Bradley-Terry log-strength: the log-odds of winning against the average strategy.",
        ),
        "responses" => ("responses", "Number of responses."),
        "p" => ("p", "Two-sided permutation test over prompts."),
        "p_holm" => (
            "p (Holm)",
            "Permutation test over prompts, corrected: differences to the first strategy for these, others for all pairs.",
        ),
        "prompts_needed" => (
            "prompts needed",
            "Prompts that show a difference of 0.02 in four of five experiments, at the spread that was seen.",
        ),
        "base_perplexity" => ("perplexity", "Of the responses, under the base."),
        "worst_dimension" => (
            "worst dimension",
            "The smallest reward among the stated dimensions of a response, on average.",
        ),
        "lost" => (
            "lost outright",
            "Share of responses with the utility 0: those that cross a bound of what counts as an answer.",
        ),
        "repetition" => (
            "repetition",
            "Share of token trigrams that came before in the response.",
        ),
        "distinct_1" => (
            "distinct-1",
            "Different words over all words of all responses.",
        ),
        "distinct_2" => (
            "distinct-2",
            "Different pairs of words over all pairs of all responses.",
        ),
        "self_bleu" => (
            "self-BLEU",
            "BLEU of each response against those to other prompts; 100: all alike.",
        ),
        "passes_per_token" => (
            "passes per token",
            "Forward passes of experts per token of the response that is kept.",
        ),
        "seconds_per_token" => ("time per token", "All sequences of a batch share it."),
        "tokens_per_second" => ("tokens/s", "Over all sequences of a batch."),
        "peak_bytes" => (
            "memory",
            "Largest resident memory of the process, the base and all experts of the experiment included.",
        ),
        "reward" => (
            "reward",
            "In standard deviations of the base's responses, signed so that more is better, where the preference states \
             the dimension.",
        ),
        "bradley_terry" => (
            "beats reference",
            "Mean probability of beating the reference response.",
        ),
        "raw_mean" => (
            "raw mean",
            "Mean of the scorer's own values, over all responses.",
        ),
        "raw_sd" => ("raw sd", "Standard deviation of the scorer's own values."),
        "preference_information" => (
            "information (preference)",
            "Mutual information of the expert and the preference, in nats.",
        ),
        "preference_excess" => (
            "information beyond equal weights",
            "What the weights tell of the preference beyond which experts run for it, in nats.",
        ),
        "level_variance" => (
            "variance of the level",
            "Variance of the logarithm of the weights' sum within a response.",
        ),
        "token_information" => (
            "information (position)",
            "Mutual information of the expert and the position in a response, in nats.",
        ),
        "hypervolume" => (
            "hypervolume",
            "Volume of mean rewards that the strategy dominates.",
        ),
        "inner_product" => ("inner product", "Mean inner product of shares and rewards."),
        "agreement" => (
            "agreement",
            "Share of pairs on which two judges say the same.",
        ),
        "kappa" => ("κ", "Agreement beyond chance (Cohen)."),
        _ => return None,
    })
}
