"""What every reported number means: the one table behind the reports, the console and docs/metrics.md.

Rewards are w·φ, the log-odds of a person's choice: a difference of 0.1 moves the odds of preferring the
better answer by about 10 %. They are in nats; only differences between answers to one prompt mean something.
"""

from rlhf.run.metric_docs_rl import RL, MetricDoc

TRAINING = {
    "train/loss/total": MetricDoc(
        "What the optimiser lowers: the pair loss plus the weighted supervised term (for supervised "
        "training, the "
        "negative log-probability of a completion token).",
        "nats",
        "Flat from the first step: nothing is learnt, or the learning rate is too low. Jumps: it is too "
        "high.",
    ),
    "train/loss/pair": MetricDoc(
        "The preference part of the loss alone, averaged over the pairs of a row.",
        "nats; squared nats for regression and ipo",
        "Near its floor within a few steps: the pairs are told apart by something trivial; run the leak "
        "check.",
    ),
    "train/loss/nll": MetricDoc(
        "Negative log-probability of whole completions, weighted by the distribution that a row should have; "
        "it counts in the loss only with loss.nll_coef above 0.",
        "nats a completion",
        "Rises while the pair loss falls: probability drains out of all the completions of the data.",
    ),
    "train/accuracy": MetricDoc(
        "Share of pairs that the policy orders as their target or label says, measured against the "
        "reference; a tie of either counts half.",
        "share, 0.5 is a coin",
        "At 0.5: nothing is learnt. At 1.0 at once: memorised or leaked.",
    ),
    "train/margin": MetricDoc(
        "How far the policy prefers the right completion, β times its log-ratio margin over the reference.",
        "nats",
        "Negative: it learns the opposite. Grows without end: β is too small or the labels have no noise.",
    ),
    "train/reward": MetricDoc(
        "Reward expected from the policy among the completions of a row, by the coefficients of the row's "
        "person.",
        "nats",
        "Does not rise: the conditioning carries no information about the person.",
    ),
    "train/kl_ref_nats": MetricDoc(
        "KL divergence from the reference among the completions of a row: how far training has moved the "
        "policy.",
        "nats",
        "Never negative, for it is exact. Above a few nats: the policy has left what the rewards were "
        "fitted on.",
    ),
    "train/log_ratio_nats": MetricDoc(
        "Mean log π − log π_ref of the row's completions, chosen and rejected together.",
        "nats a completion",
        "Falls steadily: all known completions become unlikely together, and something unknown likely.",
    ),
    "train/completion_logprob_nats": MetricDoc(
        "Mean log-probability of the row's completions under the policy.",
        "nats a completion",
        "Falls steadily: see the log-ratio; a supervised term (loss.nll_coef) holds it.",
    ),
    "train/group_mass": MetricDoc(
        "Probability that the policy gives to the completions of a row together; the rest goes to other "
        "texts.",
        "share; may pass 1 where texts repeat",
        "Falls towards 0: the policy says things that no one was asked about.",
    ),
    "train/token_entropy_nats": MetricDoc(
        "Mean entropy of the next-token distribution along the completions.",
        "nats a token",
        "Collapses to 0: the policy has one answer left. Rises: it becomes noise.",
    ),
    "train/completion_tokens": MetricDoc(
        "Mean length of the completions in the batch.",
        "tokens",
        "A property of the data: a jump means that the data changed.",
    ),
    "train/z_norm": MetricDoc(
        "Length of the conditioning signal z, in standard deviations of the population; 0 is the aggregate "
        "policy.",
        "standard deviations",
        "Near 0: every row is the aggregate person. Far above √K: people unlike any in the population.",
    ),
    "train/learning_rate": MetricDoc(
        "Learning rate of the step, after warm-up and decay.", "", "Not the shape you configured."
    ),
    "train/grad_norm": MetricDoc(
        "Norm of the gradient before clipping.",
        "",
        "Always far above optimizer.max_grad_norm: each step is clipped. Near 0 from the start: nothing is "
        "trained.",
    ),
    "train/update_norm": MetricDoc(
        "Norm of the change of the parameters in this step.",
        "",
        "Large against the parameter norm: the learning rate is too high.",
    ),
    "train/param_norm": MetricDoc(
        "Norm of the trained parameters.",
        "",
        "Grows without end: add weight decay or lower the learning rate.",
    ),
    "perf/step_seconds": MetricDoc(
        "Wall-clock time of one optimiser step.",
        "seconds",
        "Slow steps that come back again and again: something compiles anew or the disk is slow.",
    ),
    "perf/tokens_per_second": MetricDoc(
        "Completion tokens trained on in a second.",
        "tokens a second",
        "Falls during a run: the machine is shared.",
    ),
}

FIT = {
    "fit/objective": MetricDoc(
        "What the fit of basis and coefficients lowers: expected loss of all comparisons plus the two "
        "priors.",
        "nats",
        "Rises over several rounds: the fit diverges; raise fit.ridge.",
    ),
    "fit/start": MetricDoc(
        "The objective at the start of the round.", "nats", "Far above the end of the round before it."
    ),
    "fit/loss_nats": MetricDoc(
        "Expected loss of a training comparison under what is believed about its person.",
        "nats, a coin has 0.693",
        "Near 0.693: the embeddings hold nothing that people choose by. Near 0: memorised.",
    ),
    "fit/aggregate_norm": MetricDoc(
        "Length of the population's mean μ: how strongly people share a taste.",
        "nats a standard deviation of φ",
        "Near 0: there is no common taste, and the aggregate axis has no direction.",
    ),
    "fit/taste_spread": MetricDoc(
        "Square root of the trace of Σ: how far people differ from one another.",
        "nats a standard deviation of φ",
        "Near 0: everybody wants the same, and there is nothing to personalise.",
    ),
}

REWARDS = {
    "accuracy": MetricDoc(
        "Share of a new person's last choices that are predicted right after n chosen questions; mean over "
        "people.",
        "share, 0.5 is a coin",
        "Does not rise with n: answers teach nothing. Below the pooled model: personal coefficients hurt.",
    ),
    "accuracy_random": MetricDoc(
        "The same after n questions drawn at random, averaged over several orders.",
        "share, 0.5 is a coin",
        "Above the chosen questions: the choice of questions does not work.",
    ),
    "pooled_accuracy": MetricDoc(
        "The same people predicted by one model for everybody: what personal coefficients have to beat.",
        "share, 0.5 is a coin",
        "Near 0.5: people share no taste, or the embeddings do not hold it.",
    ),
    "loss_nats": MetricDoc(
        "Mean −log P of a new person's last choices after n questions: chosen ones for house, else random.",
        "nats, a coin has 0.693",
        "Rises with n while accuracy rises too: the model is too sure of itself.",
    ),
    "fully_asked": MetricDoc(
        "Number of people who had n comparisons to be asked; the others gave as many as they had.",
        "people",
        "Far below the number of people: the curve flattens there for want of answers.",
    ),
    "own": MetricDoc(
        "Accuracy with everybody's own coefficients, in the swap test.",
        "share",
        "No better than the swapped one.",
    ),
    "swapped": MetricDoc(
        "Accuracy when each person is predicted with the coefficients of somebody else.",
        "share",
        "As high as with one's own: the coefficients say nothing about the person.",
    ),
    "flip_rate": MetricDoc(
        "Share of predictions that turn round when another person's coefficients are used.",
        "share",
        "Near 0: all people have the same coefficients.",
    ),
    "difference": MetricDoc(
        "Own minus swapped accuracy, person by person.",
        "share",
        "Its interval reaches 0: it is not shown that the coefficients are personal.",
    ),
    "training_accuracy": MetricDoc(
        "Share of the training comparisons predicted right by the coefficients that were fitted on them.",
        "share",
        "Far above the accuracy on new people: overfitted.",
    ),
    "num_basis": MetricDoc(
        "K: numbers that describe a person, chosen on people left out or given.",
        "",
        "At the end of the list tried.",
    ),
    "prior_mean": MetricDoc(
        "μ, the mean of the population's coefficients by axis; by construction it lies along axis 0.",
        "nats a standard deviation of φ",
        "All near 0: there is no common taste.",
    ),
    "prior_sd": MetricDoc(
        "Standard deviation of people's coefficients along each axis, from Σ.",
        "nats a standard deviation of φ",
        "Near 0 on an axis: nobody differs there, and K is larger than the data bears.",
    ),
    "num_items": MetricDoc("Distinct pairs of prompt and completion.", "items", "Not what your data has."),
    "training_people": MetricDoc("People the basis was fitted on.", "people", "Too few: K cannot be chosen."),
    "held_out_people": MetricDoc("People kept out of the fit.", "people", "Too few: intervals are wide."),
    "training_comparisons": MetricDoc(
        "Comparisons the basis was fitted on.", "comparisons", "Not what your data has."
    ),
}

EVALUATION = {
    "diagonal_dominance": MetricDoc(
        "Share of ordered pairs of people in which the first gets more from the own policy than from the "
        "other's.",
        "share, chance 0.5",
        "Near 0.5: whose coefficients are given makes no difference.",
    ),
    "mutual_dominance": MetricDoc(
        "Share of pairs of people in which both get more from their own policy.",
        "share, chance 0.25",
        "Far below the diagonal dominance: some people's policies are simply better for everybody.",
    ),
    "own_beats_aggregate": MetricDoc(
        "Share of people who get more from their own policy than from the aggregate one.",
        "share",
        "At or below 0.5: the aggregate policy does as well, and personalisation is not worth its cost.",
    ),
    "own_beats_reference": MetricDoc(
        "Share of people who get more from their own policy than from the model before training.",
        "share",
        "Below 1: training harmed somebody.",
    ),
    "own_reward": MetricDoc(
        "Reward expected from a person's own policy, by that person's coefficients; mean over people.",
        "nats",
        "Not above the aggregate and swapped rewards.",
    ),
    "swapped_reward": MetricDoc(
        "Reward expected from other people's policies, by one's own coefficients: the other-user swap.",
        "nats",
        "As high as one's own: the policy ignores the person.",
    ),
    "aggregate_reward": MetricDoc(
        "Reward expected from the aggregate policy (z = 0), which serves everybody alike.",
        "nats",
        "Above one's own: personalisation loses.",
    ),
    "reference_reward": MetricDoc(
        "Reward expected from the model before training.",
        "nats",
        "Above the others: training made answers worse.",
    ),
    "best_reward": MetricDoc(
        "Reward of the best policy at this temperature, π_ref tilted by exp(w·φ/β): the ceiling for one's "
        "own.",
        "nats",
        "Hardly above the reference: β is so large that nothing can be gained.",
    ),
    "kl_to_optimum": MetricDoc(
        "KL divergence of the policy from the best one, exact over all answers; mean over people.",
        "nats",
        "As large as the reference's own distance: training did not approach the optimum.",
    ),
    "kl_to_optimum_worst_decile": MetricDoc(
        "The same for the person at the ninth decile.",
        "nats",
        "Far above the mean: unusual people are served badly.",
    ),
    "kl_of_reference_to_optimum": MetricDoc(
        "How far the model before training is from the best policies: where training starts.",
        "nats",
        "Near 0: there was nothing to learn.",
    ),
    "kl_of_optimum_to_reference": MetricDoc(
        "How far the best policies lie from the model before training: the tilt that is asked for.",
        "nats",
        "Many nats: the answers wanted are nearly impossible for the model; raise β.",
    ),
    "kl_to_reference": MetricDoc(
        "How far the policy has moved from the model before training; mean over people.",
        "nats",
        "Above the tilt of the best policies: it moved further than the reward asks.",
    ),
    "kl_to_aggregate": MetricDoc(
        "How far people's policies lie from the aggregate policy.",
        "nats",
        "Near 0: the policy ignores the person.",
    ),
    "valid_mass": MetricDoc(
        "Probability that the policy gives to the known answers together; mean over people.",
        "share",
        "Far below 1: exact figures, which hold within the known answers, say little about what it really "
        "says.",
    ),
    "valid_mass_aggregate": MetricDoc(
        "The same for the aggregate policy.", "share", "Far below 1: it left the known answers."
    ),
    "valid_mass_reference": MetricDoc(
        "The same for the model before training.", "share", "Far below 1: a supervised start is missing."
    ),
    "distinct_within_person": MetricDoc(
        "Share of different texts among the answers sampled for one person.",
        "share",
        "1 over the number of samples: one answer only. Near 1 with few known answers: noise.",
    ),
    "distinct_between_people": MetricDoc(
        "Share of different texts among all sampled answers.", "share", "Near 0: everybody is told the same."
    ),
    "words": MetricDoc(
        "Mean length of a sampled answer.", "words", "Far from the data's: rambling or cut short."
    ),
    "valid_answers": MetricDoc(
        "Share of sampled answers that are, letter by letter, one of the known answers.",
        "share",
        "Far below 1: the policy writes things that the rewards were never fitted on.",
    ),
    "finished": MetricDoc(
        "Share of sampled answers that ended by themselves.",
        "share",
        "Below 1: sampling.max_new_tokens cuts them.",
    ),
    "tokens": MetricDoc(
        "Mean length of a sampled answer.", "tokens", "At sampling.max_new_tokens: cut short."
    ),
    "answers_per_person": MetricDoc(
        "Answers from which each person's coefficients were estimated.",
        "answers",
        "0: everybody is the average.",
    ),
    "beta": MetricDoc(
        "β, the temperature of the training objective: the price of a nat away from the reference.",
        "",
        "Not yours.",
    ),
    "rho": MetricDoc(
        "ρ = η/(β+η), share of the way by which coefficients are drawn to the population's mean.",
        "share",
        "Near 1: the rail leaves nothing personal.",
    ),
}

GROUPS = {
    "Training (`metrics.jsonl` of `chorus train sft` and `chorus train dpo`)": TRAINING,
    "Reinforcement learning (`metrics.jsonl` of `chorus train ppo` and `chorus train grpo`)": RL,
    "Basis fit (`metrics.jsonl` of `chorus rewards fit`)": FIT,
    "Rewards (`metrics.json` of `chorus rewards fit` and `chorus rewards evaluate`)": REWARDS,
    "Policy (`metrics.json` of `chorus evaluate`)": EVALUATION,
}

# Sampled completions give some names another meaning; reports of such runs ask `metric_docs_rl.explained`.
METRICS: dict[str, MetricDoc] = RL | {
    name: doc for group in GROUPS.values() if group is not RL for name, doc in group.items()
}


def markdown() -> str:
    """docs/metrics.md: every metric with its unit, meaning and failure signs."""
    lines = [
        "# Metrics",
        "",
        "<!-- Written by scripts/metrics_page.py from rlhf/run/metric_docs.py; change it there. -->",
        "",
        "Rewards are w·φ, the log-odds of a person's choice, in nats; only differences between answers to "
        "one prompt",
        "mean something. The same explanations stand beside the numbers in every `report.html`.",
    ]
    for title, group in GROUPS.items():
        lines += [
            "",
            f"## {title}",
            "",
            "| name | unit | meaning | when something is wrong |",
            "|---|---|---|---|",
        ]
        lines += [f"| `{name}` | {doc.unit} | {doc.meaning} | {doc.wrong} |" for name, doc in group.items()]
    return "\n".join(lines) + "\n"
