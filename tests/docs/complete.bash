# SPDX-License-Identifier: Apache-2.0
# complete.bash FILE WORD...: what bash offers for the last of the words, a line each.
source "$1"
shift
[[ $(complete -p quantfold) == 'complete -F '*' quantfold' ]] || exit 1
function_name=$(complete -p quantfold)
function_name=${function_name#complete -F } function_name=${function_name% quantfold}
COMP_WORDS=("$@")
COMP_CWORD=$(($# - 1))
"$function_name" quantfold "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
printf '%s\n' "${COMPREPLY[@]}"
