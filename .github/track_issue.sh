#!/usr/bin/env bash
# Keeps the one issue that says what a torch changes: opens it, brings it up to date, closes it.
#
#     track_issue.sh REPORTS
#
# REPORTS is the folder that `nox -s track` filled: newest.md, perhaps nightly.md, and, if any of them has something to
# tell, `changed` with their names. The issue is the open one with the label. It is commented on, which sends messages,
# only when the findings changed, and not when a nightly of another day has the same ones: each report has a fingerprint
# of its findings. `gh` needs a token that can write issues.
set -euo pipefail

label=torch-track
reports=${1:?give the folder with the reports}

fail() {
  echo "track_issue.sh: $1" >&2
  exit 2
}

# The reports with something to tell, one below the other.
body() {
  echo "Written by \`.github/workflows/track.yml\`, which keeps this up to date and closes it when all is known again."
  for report in "${changed[@]}"; do
    printf '\n'
    cat "$reports/$report.md"
  done
}

title() {
  for report in "${changed[@]}"; do
    sed -n '1s/^# //p' "$reports/$report.md"
  done | paste -sd ';' | sed 's/;/; /g'
}

fingerprints() {
  grep -o '^<!-- findings [0-9a-f]* -->' | sort
}

[[ -s $reports/newest.md ]] || fail "there is no newest.md in $reports: run nox -s track first"
changed=()
if [[ -f $reports/changed ]]; then
  while read -r name || [[ -n $name ]]; do
    name=${name%.md}
    [[ -z $name ]] && continue
    [[ -s $reports/$name.md ]] || fail "$reports/changed lists $name, and there is no $name.md"
    changed+=("$name")
  done <"$reports/changed"
fi

number=$(gh issue list --label "$label" --state open --limit 1 --json number --jq '.[].number')

if [[ ${#changed[@]} -eq 0 ]]; then
  if [[ -z $number ]]; then
    echo "all is known, and no issue is open"
  else
    gh issue close "$number" --comment "Every torch that is looked at is known again."
  fi
  exit
fi

new=$(body)
if [[ -z $number ]]; then
  gh label create "$label" --description "What a torch changes of the names we rely on" --color D93F0B --force
  gh issue create --title "$(title)" --label "$label" --body-file - <<<"$new"
  exit
fi

old=$(gh issue view "$number" --json body --jq .body | tr -d '\r')
if [[ $old == "$new" ]]; then
  echo "issue $number is up to date"
  exit
fi
gh issue edit "$number" --title "$(title)" --body-file - <<<"$new"
if [[ $(fingerprints <<<"$old" || true) != $(fingerprints <<<"$new" || true) ]]; then
  gh issue comment "$number" --body "The findings changed, and the report above was brought up to date: $(title)."
fi
