#!/usr/bin/env bash
# Berklee: train on a real sound library (1,891 sounds, CC BY 3.0) and retrieve by phrases never seen in training.
#
#   runs/berklee.sh [folder with berklee.csv] [clap|slap] [seed]
#
# Both objectives get the same towers, data, batch and steps. The text tower is a frozen MiniLM. Captions are file names,
# so compounds are split (metalrumble -> metal rumble). The heads are what each objective needs: CLAP meets the text in
# MiniLM's own space (nothing to overfit on 806 phrases); SLAP needs centred projections, or all texts look alike to it.
# The last model is kept: 87 validation phrases are too few to choose a step by. Figures: docs/results.md.
set -euo pipefail
cd "$(dirname "$0")/.."

sounds=${1:-../shared/audio}
objective=${2:-clap}
seed=${3:-0}
out=outputs/berklee_${objective}_${seed}

case $objective in
  clap) own=(objective.soft_share=0.3 audio_projector=linear audio_projector.dim=384 text_projector=identity) ;;
  slap) own=(objective.ema_rate=0.9 objective.predictor=small projector=mlp
             audio_projector.output_norm=true text_projector.output_norm=true) ;;
esac

.venv/bin/antiphon train objective="$objective" "${own[@]}" seed="$seed" out="$out" \
  data=csv data.train="$sounds/berklee.csv" data.batch_size=128 \
  audio_encoder=cnn-small audio_encoder.mix_share=0.6 \
  text_encoder=minilm text_encoder.split_compounds=true freeze=[text_encoder] \
  trainer.max_epochs=33 trainer.learning_rate=2e-3 trainer.average_rate=0.99 \
  trainer.precision=32-true trainer.validate_every_epochs=3 trainer.monitor=null
.venv/bin/antiphon evaluate "$out/model" --task modality-gap --data "$sounds/berklee.csv" --split test
