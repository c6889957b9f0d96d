"use strict";
// The words of a report, for who has not read loka's docs.
L.WORDS = [
  ["site", "one GEMM (a product of matrices) of the model: the path of its module, which call of it (#0 is the first), and its role"],
  ["role", "output: the forward's product. grad_input, grad_weight: the two of the backward"],
  ["choice", "recipe/provider, or keep: left as the model has it"],
  ["recipe", "a number format and how it is scaled. int8, uint8, fp8, bf16, fp16: the format. _tensorwise, _rowwise, _blockwise: one scale for a tensor, a row, a block. _affine: a smallest value beside each row's scale. _w7: weights of 7 bits"],
  ["provider", "whose kernel runs it: aten (PyTorch's), onednn, torchao, fbgemm, deep_gemm, triton (loka's own), emulated (the exact numerics by float32, not the speed)"],
  ["runs as", "the kernel that was found in the code Inductor generated"],
  ["MERE", "mean relative error of the GEMM's result, against float32, with a floor for values near zero: 0.01 is 1 %"],
  ["SQNR", "signal over the noise that was added, in dB: 20 is 10 % of noise, 40 is 1 %. More is better"],
  ["budget", "the largest MERE (max_mere) and the least SQNR (min_sqnr_db) a choice may have"],
  ["before, after, x", "one call of the GEMM as the model has it, and as chosen with its casts; and before divided by after"],
  ["raced, measured, modelled", "raced: the whole planned graph was run against the same graph without a plan. measured: each GEMM was timed by itself, on this machine. modelled: computed from a GPU's FLOP/s and bandwidth; nothing was run"],
  ["outcome", `${L.signs.lowered} lowered: the planned kernel is in the generated code, or planned: read from a plan alone. ${L.signs.kept} kept: the plan leaves it. ${L.signs.refused} refused: a pass left it alone. ${L.signs.missing} missing: the kernel is NOT in the code. ${L.signs.gone} gone: merged with an equal GEMM, or unused. ${L.signs.pending} pending: a backward that is not compiled yet. ${L.signs.absent} absent: in the plan, in no graph so far`],
  ["pass", "one rewriting of the graph. Refused: it looked at something and left it alone, with the reason"],
  ["as written, before, after", "the graph as Dynamo has it; in ATen operators, before loka's passes; after them"],
  ["operands", "left @ right of the GEMM, as the profile saw them. amax: the largest magnitude. kurtosis: 3 for a normal distribution, more with outliers. below e4m3: what is too small for FP8. drawn: errors on operands drawn from a fitted distribution, beside the real ones"],
];

L.help = () => {
  const list = (pairs) => L.h("dl", { class: "facts" }, pairs.map(([name, what]) => [L.h("dt", null, name), L.h("dd", null, what)]));
  const keys = [["1 – 9", "a view"], ["/", "search"], ["↑ ↓ or j k, Enter", "rows of a table; unfold one"], ["Tab, Enter", "boxes of a graph; fold, unfold or select one"], ["t", "dark or light"], ["?", "this"], ["Esc", "leave a search, or this"]];
  return L.h("dialog", { id: "help" }, L.h("form", { method: "dialog" }, L.h("button", { class: "close" }, "Close")),
    L.h("h2", null, "Words"), list(L.WORDS), L.h("h2", null, "Keys"), list(keys.map(([key, what]) => [L.h("kbd", null, key), what])));
};
