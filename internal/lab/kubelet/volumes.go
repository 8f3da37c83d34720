// SPDX-License-Identifier: Apache-2.0

package kubelet

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
)

// makeVolumes makes every volume of the Pod and returns where each is. Kinds
// that the lab doesn't have are left out; a container that mounts one doesn't
// start.
func (w *worker) makeVolumes(ctx context.Context) (map[string]string, error) {
	pod := w.current()
	volumes := map[string]string{}
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		dir := filepath.Join(w.dir, "volumes", v.Name)
		if v.HostPath != nil {
			path, err := hostPath(v.HostPath)
			if err != nil {
				return nil, fmt.Errorf("volume %s: %w", v.Name, err)
			}
			volumes[v.Name] = path
			continue
		}
		known, err := w.fill(ctx, v, dir)
		if err != nil {
			return nil, fmt.Errorf("volume %s: %w", v.Name, err)
		}
		if known {
			volumes[v.Name] = dir
		}
	}
	return volumes, nil
}

func hostPath(source *corev1.HostPathVolumeSource) (string, error) {
	var err error
	switch ptr.Deref(source.Type, "") {
	case corev1.HostPathDirectoryOrCreate:
		err = os.MkdirAll(source.Path, 0o755)
	case corev1.HostPathFileOrCreate:
		var file *os.File
		if err = os.MkdirAll(filepath.Dir(source.Path), 0o755); err == nil {
			if file, err = os.OpenFile(source.Path, os.O_CREATE, 0o644); err == nil {
				err = file.Close()
			}
		}
	}
	if err == nil {
		_, err = os.Stat(source.Path)
	}
	return source.Path, err
}

// fill makes a volume that is a directory of the Pod's own. It tells whether
// its kind is known.
func (w *worker) fill(ctx context.Context, v *corev1.Volume, dir string) (bool, error) {
	mode := os.FileMode(0o755)
	var files map[string]string
	var err error
	switch {
	case v.EmptyDir != nil:
		mode = 0o777
	case v.Secret != nil:
		files, err = w.secret(ctx, v.Secret.SecretName, v.Secret.Optional)
		files, err = pick(files, v.Secret.Items, v.Secret.Optional, err)
	case v.ConfigMap != nil:
		files, err = w.configMap(ctx, v.ConfigMap.Name, v.ConfigMap.Optional)
		files, err = pick(files, v.ConfigMap.Items, v.ConfigMap.Optional, err)
	case v.DownwardAPI != nil:
		files, err = w.downward(v.DownwardAPI.Items)
	case v.Projected != nil:
		files, err = w.project(ctx, v.Projected, dir)
	default:
		return false, nil
	}
	if err != nil {
		return true, err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return true, err
	}
	// The umask must not narrow it, whoever the container runs as.
	if err := os.Chmod(dir, mode); err != nil {
		return true, err
	}
	return true, writeFiles(dir, files)
}

// pick renames and selects keys as items say; no items means all under their
// own names.
func pick(data map[string]string, items []corev1.KeyToPath, optional *bool, err error) (map[string]string, error) {
	if err != nil || len(items) == 0 {
		return data, err
	}
	files := map[string]string{}
	for _, item := range items {
		value, ok := data[item.Key]
		if !ok && !ptr.Deref(optional, false) {
			return nil, fmt.Errorf("no key %q", item.Key)
		}
		if ok {
			files[item.Path] = value
		}
	}
	return files, nil
}

func (w *worker) downward(items []corev1.DownwardAPIVolumeFile) (map[string]string, error) {
	files := map[string]string{}
	for _, item := range items {
		if item.FieldRef == nil {
			continue
		}
		value, err := w.field(item.FieldRef.FieldPath)
		if err != nil {
			return nil, err
		}
		files[item.Path] = value
	}
	return files, nil
}

func (w *worker) project(ctx context.Context, volume *corev1.ProjectedVolumeSource, dir string) (map[string]string, error) {
	all := map[string]string{}
	for _, source := range volume.Sources {
		var files map[string]string
		var err error
		switch {
		case source.ServiceAccountToken != nil:
			files, err = w.token(ctx, source.ServiceAccountToken, dir)
		case source.ConfigMap != nil:
			files, err = w.configMap(ctx, source.ConfigMap.Name, source.ConfigMap.Optional)
			files, err = pick(files, source.ConfigMap.Items, source.ConfigMap.Optional, err)
		case source.Secret != nil:
			files, err = w.secret(ctx, source.Secret.Name, source.Secret.Optional)
			files, err = pick(files, source.Secret.Items, source.Secret.Optional, err)
		case source.DownwardAPI != nil:
			files, err = w.downward(source.DownwardAPI.Items)
		default:
			err = fmt.Errorf("a projected source of a kind that the lab doesn't have")
		}
		if err != nil {
			return nil, err
		}
		maps.Copy(all, files)
	}
	return all, nil
}

// token asks for a service account token that ends with the Pod (KEP-1205),
// and has it replaced when four fifths of its life are over.
func (w *worker) token(ctx context.Context, source *corev1.ServiceAccountTokenProjection, dir string) (map[string]string, error) {
	pod := w.current()
	request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{
		ExpirationSeconds: source.ExpirationSeconds,
		BoundObjectRef:    &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: pod.Name, UID: pod.UID},
	}}
	if source.Audience != "" {
		request.Spec.Audiences = []string{source.Audience}
	}
	got, err := w.k.client.CoreV1().ServiceAccounts(pod.Namespace).CreateToken(ctx, pod.Spec.ServiceAccountName, request, metav1.CreateOptions{})
	if err != nil {
		return nil, fmt.Errorf("request token of %s: %w", pod.Spec.ServiceAccountName, err)
	}
	lifetime := time.Until(got.Status.ExpirationTimestamp.Time)
	go w.refreshToken(ctx, source, dir, lifetime*4/5)
	return map[string]string{source.Path: got.Status.Token}, nil
}

// refreshToken ends with ctx, which is the Pod's life.
func (w *worker) refreshToken(ctx context.Context, source *corev1.ServiceAccountTokenProjection, dir string, wait time.Duration) {
	if !sleep(ctx, wait) {
		return
	}
	retry(ctx, func() error {
		files, err := w.token(ctx, source, dir)
		if err != nil {
			return err
		}
		return writeFiles(dir, files)
	})
}

// writeFiles replaces files one by one, each at once.
func writeFiles(dir string, files map[string]string) error {
	for _, name := range sorted(slices.Collect(maps.Keys(files))) {
		path := filepath.Join(dir, filepath.Clean("/"+name))
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		partial := path + ".new"
		if err := os.WriteFile(partial, []byte(files[name]), 0o644); err != nil {
			return err
		}
		if err := os.Rename(partial, path); err != nil {
			return err
		}
	}
	return nil
}
