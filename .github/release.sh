#!/bin/sh
# Everything that a release carries: release.sh v1.2.3 dist [linux/amd64 ...]
#
#   mayfly_v1.2.3_OS_ARCH            what client/action downloads
#   mayfly-issuer_v1.2.3_OS_ARCH     serves on Linux; makes a CA on macOS too
#   mayfly-sidecar_v1.2.3_linux_ARCH
#   ....cdx.json                     of each program: CycloneDX, what is linked into it
#   mayfly.1 and one of each other   manual pages
#   SHA256SUMS                       of all of them, as sha256sum --check reads it
#
# The daemons take their version from the tag of the commit, so the checkout has
# to be clean; the folder is one that git ignores, or outside.
set -eu
version=$1 out=$2
shift 2
[ $# -gt 0 ] || set -- linux/amd64 linux/arm64 darwin/amd64 darwin/arm64
root=$(cd "$(dirname "$0")/.." && pwd)
if [ -n "$(git -C "$root" status --porcelain)" ] || ! git -C "$root" tag --points-at HEAD | grep -qxF "$version"; then
  echo "release.sh: the checkout has to be clean, and its commit to carry the tag $version" >&2
  exit 1
fi
mkdir -p "$out"
out=$(cd "$out" && pwd)
if [ -n "$(ls -A "$out")" ]; then
  echo "release.sh: $out is not empty: only what was built here is released" >&2
  exit 1
fi
"$root/client/action/release.sh" "$version" "$out" "$@"
cd "$root"
for platform; do
  os=${platform%/*} arch=${platform#*/}
  for program in issuer/cmd/mayfly-issuer engine-sidecar/cmd/mayfly-sidecar; do
    [ "$os" = linux ] || [ "$program" = issuer/cmd/mayfly-issuer ] || continue
    file=$out/${program##*/}_${version}_${os}_${arch}
    CGO_ENABLED=0 GOOS=$os GOARCH=$arch GOFLAGS='' GOWORK=off GOAMD64=v1 GOARM64=v8.0 GOEXPERIMENT='' \
      go build -trimpath -buildvcs=true -tags nobadger,nomysql,nopgx,nobbolt -ldflags '-s -w -buildid=' -o "$file" "./$program"
  done
done
# The tool outside the checkout, which says nothing of its version; as pipeline/sbom.go.
tools=$(mktemp -d)
trap 'rm -rf "$tools"' EXIT
(cd "$tools" && GOFLAGS='' GOWORK=off GOBIN=$tools go install github.com/CycloneDX/cyclonedx-gomod/cmd/cyclonedx-gomod@v1.10.0)
cd "$out"
for file in mayfly*; do
  arch=${file##*_} os=${file%_*}
  GOOS=${os##*_} GOARCH=$arch "$tools/cyclonedx-gomod" bin -json -std -version "$version" -output "$file.cdx.json" "$file"
done
cd "$root"
for program in client/cmd/mayfly issuer/cmd/mayfly-issuer engine-sidecar/cmd/mayfly-sidecar; do
  CGO_ENABLED=0 GOFLAGS='' GOWORK=off go run -trimpath -tags nobadger,nomysql,nopgx,nobbolt \
    -ldflags "-X github.com/mayfly-ca/mayfly/client/command.release=$version" "./$program" man >"$out/${program##*/}.1"
done
cd "$out"
sha256sum -- * >"$tools/SHA256SUMS"
mv "$tools/SHA256SUMS" SHA256SUMS
