#!/usr/bin/env bash
# Adds the documentation of a version to the branch gh-pages, which has a folder for each version and a first page that
# lists them and leads to the newest. Usage: publish_docs.sh FOLDER-WITH-HTML VERSION REMOTE
set -euo pipefail
html=$(cd "$1" && pwd)
version=$2
remote=$3
[[ $version =~ ^[0-9][0-9A-Za-z.]*$ ]] || { echo "not a version: $version" >&2; exit 2; }

site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
if [[ -n $(git ls-remote --heads "$remote" gh-pages) ]]; then
  git clone --quiet --depth 1 --branch gh-pages "$remote" "$site"
else
  git init --quiet --initial-branch gh-pages "$site"
fi

cd "$site"
rm -rf "${site:?}/$version"
cp -r "$html" "$version"
touch .nojekyll # or GitHub leaves out folders such as _static

# Final releases first, newest first; a release candidate is never the version that the first page leads to.
all=$(printf '%s\n' [0-9]*/ | tr -d / | sort -rV)
versions=$({ grep -v '[a-z]' <<< "$all"; grep '[a-z]' <<< "$all"; } || true)
newest=${versions%%$'\n'*}
{
  printf '<!DOCTYPE html>\n<html lang="en">\n<meta charset="utf-8">\n<title>automodel-mesh</title>\n'
  printf '<meta http-equiv="refresh" content="3; url=%s/">\n' "$newest"
  printf '<p>Documentation of automodel-mesh: <a href="%s/">%s, the newest release</a>. All versions:</p>\n<ul>\n' "$newest" "$newest"
  for one in $versions; do printf '<li><a href="%s/">%s</a></li>\n' "$one" "$one"; done
  printf '</ul>\n</html>\n'
} > index.html

git add --all
git diff --cached --quiet && exit 0 # a workflow that is run again
git -c user.name=release -c user.email=release@users.noreply commit --quiet --message "Documentation of $version"
git push --quiet "$remote" HEAD:gh-pages
