package main

import (
	"debug/buildinfo"
	"encoding/json"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// checkSBOMs checks the documents of one platform's programs.
func checkSBOMs(t *testing.T, out, platform, version string) {
	t.Helper()
	for _, program := range programs {
		program = filepath.Base(program)
		checkSBOM(t, filepath.Join(out, platform, program), filepath.Join(out, "sbom", platform, program+".cdx.json"), version)
	}
}

// checkSBOM checks that the document is for exactly this program and lists every
// module that is linked into it.
func checkSBOM(t *testing.T, program, sbom, version string) {
	t.Helper()
	var document struct {
		Format   string `json:"bomFormat"`
		Metadata struct {
			Component  struct{ Version, PURL string }
			Properties []struct{ Name, Value string }
		}
		Components []struct{ Name, Version string }
	}
	if err := json.Unmarshal(read(t, sbom), &document); err != nil {
		t.Fatal(err)
	}
	info, err := buildinfo.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	arch := slices.IndexFunc(info.Settings, func(s debug.BuildSetting) bool { return s.Key == "GOARCH" })
	if c := document.Metadata.Component; document.Format != "CycloneDX" || c.Version != version || !strings.Contains(c.PURL, "goarch="+info.Settings[arch].Value) {
		t.Errorf("%s: %s of %+v", sbom, document.Format, c)
	}
	hash := strings.TrimPrefix(digestOf(read(t, program)), "sha256:")
	if !slices.ContainsFunc(document.Metadata.Properties, func(p struct{ Name, Value string }) bool { return p.Value == hash }) {
		t.Errorf("%s is of other bytes than %s", sbom, program)
	}
	want, got := map[string]string{"std": info.GoVersion}, map[string]string{}
	for _, m := range info.Deps {
		want[m.Path] = m.Version
	}
	for _, c := range document.Components {
		got[c.Name] = c.Version
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s: what is linked, and what it says:\n%s", sbom, diff)
	}
}
