// SPDX-License-Identifier: Apache-2.0

package controlplane

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// tinyModule is a module whose one program stands for etcd, so that building
// it takes a moment and not minutes.
func tinyModule(t *testing.T) Builder {
	t.Helper()
	dir := t.TempDir()
	files := map[string]string{
		"go.mod":                    "module tiny\n\ngo 1.26\n\nrequire k8s.io/kubernetes v1.2.3\n\nrequire go.etcd.io/etcd/server/v3 v3.0.0\n\nreplace go.etcd.io/etcd/server/v3 => ./etcd\n\nreplace k8s.io/kubernetes => ./kubernetes\n",
		"go.sum":                    "",
		"etcd/go.mod":               "module go.etcd.io/etcd/server/v3\n\ngo 1.26\n",
		"etcd/main.go":              "package main\n\nfunc main() { println(\"etcd here\") }\n",
		"kubernetes/go.mod":         "module k8s.io/kubernetes\n\ngo 1.26\n",
		"kubernetes/cmd/kubectl.go": "package broken\n",
	}
	for name, content := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return Builder{Module: dir, Cache: t.TempDir()}
}

func TestAssetsBuildsOnceForManyCallers(t *testing.T) {
	t.Setenv("KUBEBUILDER_ASSETS", "")
	b := tinyModule(t)
	dirs := make([]string, 4)
	var wg sync.WaitGroup
	for i := range dirs {
		wg.Add(1)
		go func() {
			defer wg.Done()
			dir, err := b.Assets(t.Context(), "etcd")
			if err != nil {
				t.Errorf("caller %d: %v", i, err)
			}
			dirs[i] = dir
		}()
	}
	wg.Wait()
	out, err := exec.Command(filepath.Join(dirs[0], "etcd")).CombinedOutput()
	if err != nil || strings.TrimSpace(string(out)) != "etcd here" {
		t.Fatalf("the built program printed %q, error %v", out, err)
	}
	entries, err := os.ReadDir(dirs[0])
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.Name() != "etcd" && e.Name() != ".lock" {
			t.Errorf("left behind: %s", e.Name())
		}
	}
}

func TestAssetsReportsWhatTheCompilerSaid(t *testing.T) {
	t.Setenv("KUBEBUILDER_ASSETS", "")
	b := tinyModule(t)
	_, err := b.Assets(t.Context(), "kubectl")
	if err == nil || !strings.Contains(err.Error(), "build kubectl") || !strings.Contains(err.Error(), "k8s.io/kubernetes") {
		t.Fatalf("error does not name the program and its package: %v", err)
	}
}

func TestAssetsPrefersKubebuilderAssets(t *testing.T) {
	given := t.TempDir()
	t.Setenv("KUBEBUILDER_ASSETS", given)
	b := tinyModule(t)
	if err := os.WriteFile(filepath.Join(given, "kubectl"), nil, 0o755); err != nil {
		t.Fatal(err)
	}
	if dir, err := b.Assets(t.Context(), "kubectl"); err != nil || dir != given {
		t.Errorf("holds kubectl: got %q, %v; want %q", dir, err, given)
	}
	if dir, err := b.Assets(t.Context(), "etcd"); err != nil || dir == given {
		t.Errorf("lacks etcd: got %q, %v; want the cache", dir, err)
	}
}

func TestAssetsRefusesUnknownProgram(t *testing.T) {
	_, err := Builder{}.Assets(t.Context(), "kubelet")
	if err == nil || !strings.Contains(err.Error(), "kube-apiserver") {
		t.Fatalf("error does not list the choices: %v", err)
	}
}

func TestNewVersionsGetANewDirectory(t *testing.T) {
	b := tinyModule(t)
	before, err := b.dir(b.Module)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(b.Module, "go.sum"), []byte("x v1 h1:abc\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	after, err := b.dir(b.Module)
	if err != nil {
		t.Fatal(err)
	}
	if before == after {
		t.Errorf("both in %s", before)
	}
}
