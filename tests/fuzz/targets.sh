# One line a target: name | sources besides tests/fuzz/<name>_fuzz.cc | libraries (pkg-config) | files whose
# coverage counts. Sourced by run.sh.
layers="worker/kv/layer_plan.cc worker/kv/pass_plan.cc"
config="worker/model/model_config.cc worker/model/model_config_json.cc"
text="router/text/choice_text.cc router/text/sentencepiece_model.cc
  router/text/sentencepiece_tokenizer.cc router/text/stop_matcher.cc
  router/text/stream_detokenizer.cc router/text/utf8.cc"
base="absl_status absl_statusor absl_strings"
TARGETS=(
  "layer_map|$layers|$base|worker/kv/layer_plan.cc"
  "model_config|$layers $config worker/model/expected_tensors.cc|$base|$config"
  "safetensors|worker/model/safetensors.cc|$base absl_flat_hash_set|worker/model/safetensors.cc"
  "tokenizer_stream|$text|$base absl_span sentencepiece|$text"
)
