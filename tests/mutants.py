"""Break k2ref on purpose, one line at a time, and see that the tests notice.

    python tests/mutants.py [NAME ...]

Each mutant is a bug that a real engine had, or nearly. It is applied to a copy of the tree, and the
tests that should catch it are run there; a mutant that they let live is a hole in the tests, and
the exit status is 1. `rebuild` marks those in C, which need Cython and a compiler.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
NEEDS = {"kernels/amx/attend.h": "amx", "kernels/vnni/digits.h": "vnni"}  # the path that runs it
EMULATED = "-DEMULATED_TILES='\"../../../tests/native/emulated_tiles.h\"'"  # vnni will do for amx


class Mutant(NamedTuple):
    """One line to change, and the test files that must then fail."""

    name: str
    file: str
    before: str
    after: str
    tests: str
    rebuild: bool = False


MUTANTS = [
    Mutant("bias-in-the-mixing-weights", "moe.py",
           "mix = scores[np.arange(len(scores))", "mix = choice[np.arange(len(scores))",
           "test_moe.py"),
    Mutant("masked-groups-count-as-zero", "moe.py",
           "best = _best_groups_first(best, choice, config)",
           "first = _best_groups_first(best, choice, config)[:, :config.topk_group * "
           "(choice.shape[1] // config.n_group)]; zeros = np.zeros_like(choice); "
           "np.put_along_axis(zeros, first, np.take_along_axis(choice, first, -1), -1); "
           "best = (-zeros).argsort(axis=-1, kind='stable')",
           "test_moe.py"),
    Mutant("experts-of-nan-are-passed-over", "moe.py",
           "if not math.isfinite(np.vdot(logits, logits)", "if False and (np.vdot(logits, logits)",
           "test_not_finite.py"),
    Mutant("squares-that-overflow-make-zeros", "kernels/attend.h",
           "sqrtf(mean + eps + 0 * mean)", "sqrtf(mean + eps)", "test_not_finite.py",
           rebuild=True),
    Mutant("scores-of-nan-are-passed-over", "kernels/attend.h",
           "*sum += 0 * NAME(add_lanes)(lanes);", "", "test_not_finite.py", rebuild=True),
    Mutant("scores-of-nan-are-passed-over-in-tiles", "kernels/amx/attend.h",
           "sum[0] = _mm512_fmadd_ps(doubt, none, sum[0]);", "", "test_not_finite.py",
           rebuild=True),
    Mutant("rows-before-the-last-are-forgotten", "run.py",
           "np.nan) if self._lost else", "np.nan) if False else", "test_not_finite.py"),
    Mutant("fields-that-nobody-knows-are-taken", "checkpoint/quantization.py",
           "if supported is HARMLESS or _is_nothing(value):",
           "if supported is HARMLESS or name not in known or _is_nothing(value):",
           "checkpoint/test_quantization.py"),
    Mutant("patterns-are-not-counted", "checkpoint/quantization.py",
           "total += n_tries(pattern, where)", "n_tries(pattern, where)",
           "checkpoint/test_quantization.py"),
    Mutant("long-patterns-are-compiled", "checkpoint/quantization.py",
           "total += len(pattern) // CHARS", "total += 0", "checkpoint/test_quantization.py"),
    Mutant("names-that-come-twice-are-taken", "doors/intake.py",
           "if len(values) < len(pairs):", "if False:", "doors/test_intake.py"),
    Mutant("inspect-forgets-weight-shape", "checkpoint/inspection.py",
           "others += wrong_shapes(shards, bound)", "pass", "checkpoint/test_inspection.py"),
    Mutant("layers-beyond-the-last-are-all-skipped", "checkpoint/weights.py",
           "layer >= first and layer in beyond", "layer >= first", "checkpoint/test_checkpoint.py"),
    Mutant("mix-not-normalised", "moe.py",
           "if config.norm_topk_prob and", "if False and", "test_moe.py"),
    Mutant("router-scores-in-bf16", "moe.py",
           "choose(ops.sigmoid(logits), bias, config)",
           "choose((ops.sigmoid(logits).view(np.uint32) >> 16 << 16)"
           ".view(np.float32), bias, config)",
           "test_moe.py test_golden.py"),
    Mutant("shared-expert-forgotten", "moe.py",
           "rows, h.shape[1]) + shared", "rows, h.shape[1])",
           "test_moe.py test_golden.py"),
    Mutant("mscale-for-mscale-all-dim", "checkpoint/config.py",
           "attention_factor(self.rope_scaling.mscale_all_dim) ** 2",
           "attention_factor(self.rope_scaling.mscale) ** 2", "checkpoint/test_config.py"),
    Mutant("beta-fast-hard-coded", "checkpoint/config.py",
           "pair_turning(yarn.beta_fast)", "pair_turning(32.0)",
           "checkpoint/test_config.py test_rope.py"),
    Mutant("latent-norms-with-rms-norm-eps", "attention.py",
           "w.kv_a_layernorm, config.latent_norm_eps", "w.kv_a_layernorm, config.rms_norm_eps",
           "test_attention.py test_golden.py"),
    Mutant("no-causal-mask", "kernels/attend.h",
           "seen = a->start + t + 1;", "seen = a->start + a->T;",
           "test_attention.py test_model.py", rebuild=True),
    Mutant("no-causal-mask-in-tiles", "kernels/amx/attend.h",
           "seen = a->start + t + 1;", "seen = a->start + a->T;",
           "test_attend.py", rebuild=True),
    Mutant("no-causal-mask-in-numpy", "attention.py",
           "scores[hidden] = -np.inf", "pass", "test_attention.py test_model.py test_golden.py"),
    Mutant("heads-swapped-in-kv-b", "loading.py",
           "W_UK=[kv_b.rows(r, r + N) for r in starts]",
           "W_UK=[kv_b.rows(r + V, r + V + N) for r in starts]",
           "test_attention.py test_golden.py"),
    Mutant("rope-pairs-half-split", "rope.py",
           "a, b = x[..., 0::2], x[..., 1::2]",
           "a, b = x[..., :x.shape[-1] // 2], x[..., x.shape[-1] // 2:]", "test_rope.py"),
    Mutant("positions-restart-after-the-cache", "run.py",
           "np.arange(self.cache.length, self.cache.length + n_tokens)", "np.arange(n_tokens)",
           "test_model.py"),
    Mutant("cache-moves-on-after-a-failure", "run.py",
           "        cache.truncate(before)\n        raise", "        raise", "test_model.py"),
    Mutant("nibbles-in-twos-complement", "quant.py",
           "nibbles = (q + 8).astype(np.uint32)", "nibbles = (q & 15).astype(np.uint32)",
           "test_quant.py"),
    Mutant("high-nibble-first", "quant.py",
           "nibbles = (words >> (4 * np.arange(8, dtype=np.uint32))) & 15",
           "nibbles = (words >> (4 * np.arange(8, dtype=np.uint32)[::-1])) & 15", "test_quant.py"),
    Mutant("bf16-truncated-not-rounded", "quant.py",
           "rounded = (words + 0x7FFF + ((words >> 16) & 1)) >> 16", "rounded = words >> 16",
           "test_quant.py"),
    Mutant("int4-scales-of-the-wrong-lane", "kernels/linear.h",
           "#define GROUP_OF(l) (4 * ((l) & 3) + ((l) >> 2))", "#define GROUP_OF(l) (l)",
           "test_ops.py", rebuild=True),
    Mutant("a-fork-waits-for-threads", "_kernels.pyx",
           "    let_threads_go()\n", "    pass\n", "test_ops.py", rebuild=True),
    Mutant("small-activations-lost-beside-large", "kernels/vnni/digits.h",
           "_mm512_store_ps(block->least, _mm512_maskz_mov_ps(far, least));",
           "_mm512_store_ps(block->least, _mm512_setzero_ps());", "test_integers.py", rebuild=True),
    Mutant("digits-without-their-carry", "kernels/vnni/digits.h",
           "digits[i] = _mm512_xor_si512(_mm512_add_epi32(integers, half), half);",
           "digits[i] = integers;", "test_integers.py", rebuild=True),
    Mutant("fp8-view-forgets-its-first-row", "quant.py",
           "return Fp8(self.bits[start:stop], self.scale_inv, self.first_row + start)",
           "return Fp8(self.bits[start:stop], self.scale_inv)", "test_quant.py test_ops.py"),
    Mutant("marks-torn-from-letters", "tokenizer.py",
           r'UPPER = r"[[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]--\p{Han}]"',
           r'UPPER = r"[[\p{Lu}\p{Lt}\p{Lm}\p{Lo}]--\p{Han}]"', "test_bpe.py test_tokenizer.py"),
    Mutant("camel-case-in-one-piece", "tokenizer.py",
           r'UPPER = r"[[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]--\p{Han}]"',
           r'UPPER = r"[[\p{Lu}\p{Ll}\p{Lt}\p{Lm}\p{Lo}\p{M}]--\p{Han}]"',
           "test_bpe.py test_tokenizer.py"),
    Mutant("user-text-becomes-control-tokens", "conversation/template.py",
           "self.tokenizer.encode(text, allow_special=False)",
           "self.tokenizer.encode(text, allow_special=True)", "conversation/test_template.py"),
    Mutant("tool-section-inside-thinking-is-thinking", "conversation/reply.py",
           "self._outside = None if marker == SECTION_BEGIN else self._outside\n"
           "            self._state = SECTION",
           "self._outside = None if marker == SECTION_BEGIN else self._outside\n"
           "            self._state = THINKING if self._state == THINKING else SECTION",
           "conversation/test_reply.py"),
    Mutant("stale-inv-freq-is-an-error", "checkpoint/weights.py",
           "rotary_emb.inv_freq", "rotary_emb.inv_freqs", "checkpoint/test_checkpoint.py"),
    Mutant("cache-reused-where-the-prompt-differs", "conversation/chat.py",
           "return next((i for i in range(limit) if held[i] != ids[i]), limit)", "return limit",
           "conversation/test_conversation.py"),
    Mutant("penalty-forgets-what-the-cache-holds", "generation.py",
           "seen = before + ids", "seen = [0] * len(before) + ids",
           "conversation/test_conversation.py"),
    Mutant("a-tool-guessed-for-any-unknown-id", "conversation/events.py",
           'return "" if BARE.fullmatch(id) else name', 'return ""',
           "conversation/test_reply.py tools/test_agent.py"),
    Mutant("a-counter-taken-off-twice", "conversation/events.py",
           "for text in spelled)]", "for text in (name, *spelled))]", "conversation/test_reply.py"),
    Mutant("a-call-that-was-cut-off-is-run", "tools/agent.py",
           "if history.is_complete(call)\n", "if True\n", "tools/test_agent.py"),
    Mutant("a-call-that-anything-ends-is-whole", "conversation/reply.py",
           "def _close(self, is_complete=False):", "def _close(self, is_complete=True):",
           "conversation/test_reply.py conversation/test_conversation.py tools/test_agent.py"),
    Mutant("cut-off-for-ever", "tools/agent.py",
           "if is_cut_off and was_cut_off:", "if False:", "tools/test_agent.py"),
    Mutant("thinking-without-its-begin-is-content", "conversation/reply.py",
           "self._release(THINKING)", "self._release(CONTENT)", "conversation/test_reply.py"),
    Mutant("k2-7-code-forgets-its-thinking", "conversation/template.py",
           'style.keeps == "always" or', "False or", "conversation/test_template.py"),
    Mutant("the-language-model-alone-is-k2-thinking", "checkpoint/styles.py",
           "config.rope_scaling.beta_fast > 1", "config.rope_scaling.beta_fast > 99",
           "conversation/test_styles.py"),
    Mutant("an-answer-at-once-is-sampled-as-thinking", "generation.py",
           "if thinking or not style else", "if True else", "test_generate.py"),
    Mutant("a-bad-setting-leaves-its-question", "tools/agent.py",
           "        except Exception:\n", "        except ValueError:\n", "tools/test_agent.py"),
    Mutant("call-ids-counted-turn-by-turn", "conversation/history.py",
           "calls, waiting = [], {}", "calls, waiting, n_calls = [], {}, 0",
           "conversation/test_history.py tools/test_agent.py"),
    Mutant("ids-renamed-after-turns-were-dropped", "tools/agent.py",
           "prompt_ids(self.model, self.view(),",
           "prompt_ids(self.model, history.rename_calls(self.view()),", "tools/test_agent.py"),
    Mutant("a-reply-leaves-its-calls-without-results", "tools/agent.py",
           "self._complete()\n\n", "pass\n\n", "tools/test_agent.py"),
    Mutant("a-late-call-goes-on", "tools/process.py",
           "if answer is False:\n            self.end()", "if answer is False:\n            pass",
           "tools/test_tool_process.py"),
    Mutant("an-answer-goes-into-a-file-of-a-tool", "tools/child.py",
           "if _identity(answers) == pipe:", "if True:", "tools/test_tool_process.py"),
    Mutant("tools-outlive-k2ref", "tools/child.py",
           "    _end_with(life)\n    thr", "    thr", "tools/test_tool_process.py"),
    Mutant("the-last-of-two-arguments-counts", "tools/toolbox.py",
           "object_pairs_hook=each_once", "object_pairs_hook=dict", "tools/test_tools.py"),
    Mutant("session-rows-not-checked", "conversation/session.py",
           "if zlib.crc32(rows) != checksums[i]:", "if False:", "conversation/test_session.py"),
    Mutant("session-written-in-place", "doors/atomic.py",
           'partial = path.with_name(f"{path.name}.{os.getpid()}.{secrets.token_hex(4)}.partial")',
           "partial = path; partial.unlink(missing_ok=True)",
           "conversation/test_session.py doors/test_atomic.py"),
    Mutant("a-writer-removes-what-another-writes", "doors/atomic.py",
           "_lock(file)\n        os.kill", "os.kill", "doors/test_atomic.py"),
    Mutant("left-overs-known-by-their-beginning", "doors/atomic.py",
           r'r"\.(\d{1,9})(\.[0-9a-f]{8})?\.partial")', r'r"\..*?(\d+).*\.partial")',
           "doors/test_atomic.py"),
    Mutant("session-content-taken-on-trust", "conversation/session.py",
           "n_expected = _check(header, path, model)",
           "n_expected = n_bytes - len(first) - n_header", "conversation/test_session.py"),
    Mutant("names-of-tensors-reach-the-terminal", "checkpoint/inspection.py",
           "lines = [line(text) for text in", "lines = [text for text in", "doors/test_screen.py"),
    Mutant("bidirectional-overrides-reach-the-terminal", "doors/screen.py",
           "*range(0x2028, 0x202F), ", "", "doors/test_screen.py"),
    Mutant("a-second-ctrl-c-loses-what-was-said", "doors/endings.py",
           "if not self.unwinds and not self.n_held:", "if True:", "doors/test_endings.py"),
    Mutant("ctrl-c-in-the-imports-is-a-traceback", "doors/endings.py",
           "if is_command():", "if False:", "doors/test_endings.py"),
    Mutant("what-nobody-reads-is-not-kept", "cli/dialogue.py",
           "try:\n                self.keep()\n            finally:\n                self.keep()",
           "try:\n                printer.write('x')\n            except OSError:\n"
           "                raise\n            else:\n                self.keep()",
           "doors/test_endings.py"),
    Mutant("top-p-drops-the-token-that-crosses", "sampling.py",
           'side="left") + 1]', 'side="left")]', "test_sampling.py"),
    Mutant("the-budget-does-not-hold", "streaming/residency.py",
           "if excess > 0 and n_bytes and not by_force:", "if False:",
           "streaming/test_residency.py"),
    Mutant("a-fork-waits-for-readers", "streaming/residency.py",
           "if self._pool_of != os.getpid():", "if self._pool_of is None:",
           "streaming/test_stream.py"),
    Mutant("what-is-in-use-makes-room", "streaming/residency.py",
           "if unit not in busy:", "if True:", "streaming/test_residency.py"),
    Mutant("a-doubted-expert-is-taken-for-resident", "streaming/residency.py",
           "self.epoch += 1", "self.epoch += 0", "streaming/test_residency.py"),
    Mutant("a-file-that-changed-makes-logits", "streaming/pages.py",
           "if (status.st_size, status.st_mtime_ns) != self.known:", "if False:",
           "streaming/test_faults.py"),
]


def survives(mutant, place, flags):
    """Apply one mutant to a fresh copy of the tree in `place`, and say whether its tests pass.

    `flags`: for the C compiler, besides those of setup.py.
    """
    shutil.rmtree(place, ignore_errors=True)
    skip = shutil.ignore_patterns(".git", ".hypothesis", "__pycache__", "build", "*.egg-info")
    shutil.copytree(ROOT, place, ignore=skip)
    file = place / "k2ref" / mutant.file
    source = file.read_text(encoding="utf-8")
    if source.count(mutant.before) < 1:
        raise SystemExit(f"{mutant.name}: {mutant.file} has no {mutant.before!r}; mend mutants.py")
    file.write_text(source.replace(mutant.before, mutant.after), encoding="utf-8")
    environment = {"K2REF_EXAMPLES": "25", **os.environ, "PYTHONPATH": str(place),
                   "CFLAGS": f"{os.environ.get('CFLAGS', '')} {flags}"}
    if mutant.rebuild:
        build = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
        built = subprocess.run(build, cwd=place, env=environment, capture_output=True, text=True)
        if built.returncode:
            raise SystemExit(f"{mutant.name}: the build ended with {built.returncode}\n"
                             f"{built.stderr[-2000:]}")
    tests = [f"tests/{name}" for name in mutant.tests.split()]
    pytest = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-m",
              "not slow"]
    run = subprocess.run([*pytest, *tests], cwd=place, env=environment, capture_output=True,
                         text=True)
    if run.returncode not in (0, 1):
        raise SystemExit(f"{mutant.name}: pytest ended with {run.returncode}\n{run.stdout[-2000:]}")
    return run.returncode == 0


def main(names):
    """Try the named mutants, or all; return 1 if any survives."""
    from conftest import kernel_paths  # not for those who only read the list
    alive = []
    with tempfile.TemporaryDirectory() as temporary:
        for mutant in MUTANTS:
            if names and mutant.name not in names:
                continue
            path, here = NEEDS.get(mutant.file), kernel_paths()
            if path and path not in here and "vnni" not in here:
                print(f"skipped  {mutant.name}: this machine has no {path}", flush=True)
                continue
            flags = EMULATED if path == "amx" and path not in here else ""
            lives = survives(mutant, Path(temporary) / "tree", flags)
            print(f"{'SURVIVED' if lives else 'killed':9}{mutant.name}", flush=True)
            alive += [mutant.name] if lives else []
    print(f"{len(alive)} mutants survived" + ": " * bool(alive) + ", ".join(alive))
    return 1 if alive else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
