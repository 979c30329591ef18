EXPERIMENT_NAME="$MODEL_TYPE-squad_v1"
TASK_NAME=squad_v1
DATA_PATH="$DATA_ROOT/squad_v1"
TRAIN_ARGS=(--epochs 5 --batch-size 12 --lr 1e-5 --lr-decay-style linear --warmup 0.06
    --weight-decay 0.1 --label-smoothing 0.1)
COMMON_ARGS=(--save-interval 10000 --eval-epoch 2)
TASK_ARGS=(--src-seq-length 512 --tgt-seq-length 64 --min-tgt-length 0 --length-penalty 0
    --no-repeat-ngram-size 0 --num-beams 5 --select-topk --eval-batch-size 1)
