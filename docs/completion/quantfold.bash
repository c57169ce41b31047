# SPDX-License-Identifier: Apache-2.0
# Completion for bash: commands, long options, their words, and files of the right kind. Loaded by name
# from share/bash-completion/completions, or by hand with 'source'. tests/docs holds it against --help.

# Prints the long options of a command.
_quantfold_options() {
  case $1 in
    export)
      echo --model --config --record --save-path --input-names --output-names --dynamic-axes --from \
        --on-unsupported --free-qdq --emit --external --external-threshold --external-layout \
        --fake-quant-weights --weight-only --include --exclude --dedup --threads --io --fsync \
        --no-fsync --memory-limit --manifest --stats --resume --shard --progress --dry-run --json --verbose \
        --quiet --help
      ;;
    checkpoint)
      echo --model --out --scheme --include --exclude --scales --record --max-shard-size --threads \
        --io --fsync --no-fsync --memory-limit --manifest --stats --resume --shard --progress \
        --dry-run --json --verbose --quiet --help
      ;;
    batch)
      echo --only --keep-going --fail-fast --resume --threads --progress --dry-run --json --verbose \
        --quiet --help
      ;;
    commit) echo --save-path --out --no-fsync --json --quiet --help ;;
    check)
      echo --model --config --record --from --on-unsupported --weight-only --include --exclude --json \
        --quiet --help
      ;;
    record)
      echo --model --config --activations --from-qdq --on-unsupported --output --threads --quiet --help
      ;;
    verify)
      echo --against --record --config --weight-only --include --exclude --from --on-unsupported \
        --free-qdq --input-names --output-names --dynamic-axes --external-threshold --runnable \
        --threads --json --verbose --quiet --help
      ;;
    report) echo --output --json --quiet --help ;;
    inspect) echo --json --help ;;
  esac
}

# Prints what an option of a command takes: words, and *.suffix for files or / for folders. Returns 1
# if it takes nothing or something that cannot be guessed.
_quantfold_values() {
  case $1$2 in
    checkpoint--model | *--out | *--save-path) echo / ;;
    *--model | *--against) echo '*.onnx' ;;
    report--output) echo '*.html' ;;
    *--config | *--activations) echo '*.json' ;;
    *--record | *--output) echo '*.txt' ;;
    *--from) echo auto qdq float ;;
    *--on-unsupported) echo error float ;;
    *--free-qdq) echo keep drop ;;
    *--emit) echo both deploy fake-quant runnable ;;
    *--external) echo auto always never ;;
    *--external-layout) echo per-tensor single ;;
    *--fake-quant-weights) echo float int8 shared ;;
    *--weight-only) echo w8a16 w4a16 w4a16:group=128 record ;;
    *--scheme) echo w8a16 w4a16 w4a16:group=128 w8a8 ;;
    *--scales) echo minmax record '*.txt' '*.safetensors' ;;
    *--io) echo auto pwrite mmap direct ;;
    *--progress) echo auto always never json ;;
    *--shard) echo slurm ;;
    *) return 1 ;;
  esac
}

# Adds to COMPREPLY what goes with the start of a word.
_quantfold_reply() { # _quantfold_reply START VALUE...
  local start=$1 value found
  shift
  for value in "$@"; do
    case $value in
      /) mapfile -t found < <(compgen -d -- "$start") ;;
      \**) mapfile -t found < <(compgen -f -X "!$value" -- "$start"; compgen -d -- "$start") ;;
      *) mapfile -t found < <(compgen -W "$value" -- "$start") ;;
    esac
    case $value in
      / | \**) compopt -o filenames 2>/dev/null ;;
    esac
    COMPREPLY+=("${found[@]}")
  done
}

_quantfold() {
  local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD - 1]} command=${COMP_WORDS[1]}
  local -a values
  COMPREPLY=()
  if [ "$COMP_CWORD" -eq 1 ]; then
    _quantfold_reply "$cur" export checkpoint batch commit check record verify report inspect \
      --help --version
    return
  fi
  # bash makes three words of --option=value
  if [ "$cur" = = ]; then
    cur=
  elif [ "$prev" = = ]; then
    prev=${COMP_WORDS[COMP_CWORD - 2]}
  fi
  if read -ra values < <(_quantfold_values "$command" "$prev"); then
    _quantfold_reply "$cur" "${values[@]}"
  elif [[ $cur == -* ]]; then
    read -ra values < <(_quantfold_options "$command")
    _quantfold_reply "$cur" "${values[@]}"
  else
    case $command in
      inspect) _quantfold_reply "$cur" '*.onnx' ;;
      batch) _quantfold_reply "$cur" '*.json' ;;
      report) _quantfold_reply "$cur" '*.manifest.json' ;;
      verify) _quantfold_reply "$cur" '*deploy_model.onnx' '*manifest.json' ;;
    esac
  fi
}

complete -F _quantfold quantfold
