# SPDX-License-Identifier: Apache-2.0
# Read by an interactive zsh on a terminal of its own (test_completion.py): a tab writes what the
# completion offers for the line to $COMPLETE_OUT, a line each, and then makes $COMPLETE_OUT.done.
fpath=($COMPLETE_FOLDER $fpath)
autoload -Uz compinit
compinit -u -d $COMPLETE_DUMP
PROMPT= RPS1=

compadd() {
  # calls that only ask which words match, for compadd itself to be told of later
  if [[ ${@[1,(i)(-|--)]} == *-(O|A|D)\ * ]]; then
    builtin compadd "$@"
    return
  fi
  local -a matching
  builtin compadd -O matching "$@"
  offered+=("${matching[@]}")
  builtin compadd "$@"
}
write_offered() {
  local -a offered
  _main_complete
  print -rl -- "${(@)offered}" >$COMPLETE_OUT
  : >$COMPLETE_OUT.done
  compstate[list]= compstate[insert]=
}
zle -C write_offered complete-word write_offered
bindkey '^I' write_offered
