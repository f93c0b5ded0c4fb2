#!/usr/bin/env bash
# Berklee: train on a real sound library (1,891 sounds, CC BY 3.0) and retrieve by phrases never seen in training.
#
#   runs/berklee.sh [folder with berklee.csv] [objective] [seed]
#
# Both objectives get the same towers, heads, data and steps. The text tower is a frozen MiniLM whose space is the joint
# space (text_projector=identity); captions are file names, so compounds are split (metalrumble -> metal rumble). The
# settings were chosen on the validation split. Figures: docs/results.md.
set -euo pipefail
cd "$(dirname "$0")/.."

sounds=${1:-../shared/audio}
objective=${2:-clap}
seed=${3:-0}
out=outputs/berklee_${objective}_${seed}

.venv/bin/antiphon train objective="$objective" seed="$seed" out="$out" \
  data=csv data.train="$sounds/berklee.csv" data.batch_size=128 \
  audio_encoder=cnn-small audio_encoder.mix_share=0.6 \
  text_encoder=minilm text_encoder.split_compounds=true freeze=[text_encoder] \
  audio_projector=linear audio_projector.dim=384 text_projector=identity \
  trainer.max_epochs=60 trainer.learning_rate=2e-3 trainer.average_rate=0.99 \
  trainer.precision=bf16-mixed trainer.validate_every_epochs=3
.venv/bin/antiphon evaluate "$out/model" --task modality-gap --data "$sounds/berklee.csv" --split test
