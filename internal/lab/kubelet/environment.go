// SPDX-License-Identifier: Apache-2.0

package kubelet

import (
	"context"
	"fmt"
	"maps"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"github.com/causeway-lb/causeway/internal/lab/sandbox"
)

// sandbox translates a container and its image to what is executed.
func (c *container) sandbox(image Image) (sandbox.Spec, error) {
	w := c.w
	env, err := c.environment(image)
	if err != nil {
		return sandbox.Spec{}, err
	}
	spec := sandbox.Spec{
		Hostname: w.hostname(),
		Dir:      or(c.spec.WorkingDir, image.Dir),
		UID:      image.UID, GID: image.UID,
	}
	if network := w.network; network != nil {
		spec.Network = network.namespace.Path()
	}
	expand := func(args []string) (out []string) {
		for _, arg := range args {
			out = append(out, expandVariables(arg, env))
		}
		return out
	}
	spec.Argv = append(expand(c.spec.Command), expand(c.spec.Args)...)
	if len(c.spec.Command) == 0 {
		spec.Argv = slices.Clone(image.Entrypoint)
		if len(c.spec.Args) == 0 {
			spec.Argv = append(spec.Argv, image.Args...)
		}
		spec.Argv = append(spec.Argv, expand(c.spec.Args)...)
	}
	for _, name := range sorted(slices.Collect(maps.Keys(env))) {
		spec.Env = append(spec.Env, name+"="+env[name])
	}
	mounts, err := c.mounts(image)
	if err != nil {
		return sandbox.Spec{}, err
	}
	spec.Root = &sandbox.Root{Mounts: mounts}
	return spec, c.secure(&spec)
}

func (c *container) mounts(image Image) ([]sandbox.Mount, error) {
	w := c.w
	var mounts []sandbox.Mount
	for _, target := range sorted(slices.Collect(maps.Keys(image.Files))) {
		mounts = append(mounts, sandbox.Mount{Source: image.Files[target], Target: target, ReadOnly: true})
	}
	for _, name := range []string{"hosts", "hostname", "resolv.conf"} {
		mounts = append(mounts, sandbox.Mount{Source: filepath.Join(w.dir, name), Target: "/etc/" + name})
	}
	for _, m := range c.spec.VolumeMounts {
		source, ok := w.volumes[m.Name]
		if !ok {
			return nil, fmt.Errorf("volume %q: of a kind that the lab doesn't have", m.Name)
		}
		if m.SubPath != "" {
			source = filepath.Join(source, filepath.Clean("/"+m.SubPath))
		}
		mounts = append(mounts, sandbox.Mount{Source: source, Target: path.Clean(m.MountPath), ReadOnly: m.ReadOnly})
	}
	return mounts, nil
}

// secure applies the security contexts of Pod and container.
func (c *container) secure(spec *sandbox.Spec) error {
	pod := ptr.Deref(c.w.current().Spec.SecurityContext, corev1.PodSecurityContext{})
	own := ptr.Deref(c.spec.SecurityContext, corev1.SecurityContext{})
	if user := first(own.RunAsUser, pod.RunAsUser); user != nil {
		spec.UID, spec.GID = int(*user), 0
	}
	if group := first(own.RunAsGroup, pod.RunAsGroup); group != nil {
		spec.GID = int(*group)
	}
	if ptr.Deref(first(own.RunAsNonRoot, pod.RunAsNonRoot), false) && spec.UID == 0 {
		return fmt.Errorf("container has runAsNonRoot and image %s runs as root", c.spec.Image)
	}
	spec.NoNewPrivileges = !ptr.Deref(own.AllowPrivilegeEscalation, true)
	spec.Root.ReadOnly = ptr.Deref(own.ReadOnlyRootFilesystem, false)
	if ptr.Deref(own.Privileged, false) {
		spec.Root.WritableSysctls = true
		return nil
	}
	spec.Capabilities = boundingSet(own.Capabilities)
	if profile := first(own.SeccompProfile, pod.SeccompProfile); profile != nil && profile.Type == corev1.SeccompProfileTypeRuntimeDefault {
		spec.Seccomp = c.w.k.config.RuntimeDefault
	}
	return nil
}

// boundingSet is the runtime's default less what is dropped plus what is added.
func boundingSet(want *corev1.Capabilities) []string {
	set := map[string]bool{}
	for _, name := range sandbox.DefaultCapabilities {
		set[name] = true
	}
	if want != nil {
		for _, name := range want.Drop {
			if strings.EqualFold(string(name), "ALL") {
				clear(set)
			}
			delete(set, string(name))
		}
		for _, name := range want.Add {
			if strings.EqualFold(string(name), "ALL") {
				return nil
			}
			set[string(name)] = true
		}
	}
	return append([]string{}, sorted(slices.Collect(maps.Keys(set)))...)
}

func first[T any](values ...*T) *T {
	for _, value := range values {
		if value != nil {
			return value
		}
	}
	return nil
}

// or returns the fallback for a zero value.
func or[T comparable](value, fallback T) T {
	var zero T
	if value == zero {
		return fallback
	}
	return value
}

// environment is what the program sees: the image's, then the cluster's, then
// envFrom, then env, later ones winning.
func (c *container) environment(image Image) (map[string]string, error) {
	config := c.w.k.config
	servicePort := strconv.Itoa(int(config.ServicePort))
	env := map[string]string{
		"PATH":                          "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"HOME":                          "/root",
		"HOSTNAME":                      c.w.hostname(),
		"KUBERNETES_SERVICE_HOST":       config.ServiceHost,
		"KUBERNETES_SERVICE_PORT":       servicePort,
		"KUBERNETES_SERVICE_PORT_HTTPS": servicePort,
	}
	for _, variable := range image.Env {
		name, value, _ := strings.Cut(variable, "=")
		env[name] = value
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	for _, from := range c.spec.EnvFrom {
		if err := c.environmentFrom(ctx, from, env); err != nil {
			return nil, err
		}
	}
	for _, variable := range c.spec.Env {
		value, ok, err := c.variable(ctx, variable, env)
		if err != nil {
			return nil, fmt.Errorf("variable %s: %w", variable.Name, err)
		}
		if ok {
			env[variable.Name] = value
		}
	}
	return env, nil
}

func (c *container) environmentFrom(ctx context.Context, from corev1.EnvFromSource, env map[string]string) error {
	var data map[string]string
	var err error
	switch {
	case from.ConfigMapRef != nil:
		data, err = c.w.configMap(ctx, from.ConfigMapRef.Name, from.ConfigMapRef.Optional)
	case from.SecretRef != nil:
		data, err = c.w.secret(ctx, from.SecretRef.Name, from.SecretRef.Optional)
	}
	for name, value := range data {
		env[from.Prefix+name] = value
	}
	return err
}

// variable resolves one variable; ok is false for an optional source that is
// not there.
func (c *container) variable(ctx context.Context, v corev1.EnvVar, env map[string]string) (value string, ok bool, err error) {
	from := v.ValueFrom
	var data map[string]string
	var key string
	var optional *bool
	switch {
	case from == nil:
		return expandVariables(v.Value, env), true, nil
	case from.FieldRef != nil:
		value, err := c.w.field(from.FieldRef.FieldPath)
		return value, err == nil, err
	case from.ResourceFieldRef != nil:
		value, err := c.resource(from.ResourceFieldRef)
		return value, err == nil, err
	case from.ConfigMapKeyRef != nil:
		key, optional = from.ConfigMapKeyRef.Key, from.ConfigMapKeyRef.Optional
		data, err = c.w.configMap(ctx, from.ConfigMapKeyRef.Name, optional)
	case from.SecretKeyRef != nil:
		key, optional = from.SecretKeyRef.Key, from.SecretKeyRef.Optional
		data, err = c.w.secret(ctx, from.SecretKeyRef.Name, optional)
	default:
		return "", false, fmt.Errorf("source of a kind that the lab doesn't have")
	}
	if err != nil {
		return "", false, err
	}
	value, ok = data[key]
	if !ok && !ptr.Deref(optional, false) {
		return "", false, fmt.Errorf("no key %q in its source", key)
	}
	return value, ok, nil
}

// configMap reads a ConfigMap of the Pod's namespace. An optional one that is
// not there is empty.
func (w *worker) configMap(ctx context.Context, name string, optional *bool) (map[string]string, error) {
	got, err := w.k.client.CoreV1().ConfigMaps(w.current().Namespace).Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) && ptr.Deref(optional, false) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read ConfigMap %s: %w", name, err)
	}
	data := map[string]string{}
	maps.Copy(data, got.Data)
	for key, value := range got.BinaryData {
		data[key] = string(value)
	}
	return data, nil
}

func (w *worker) secret(ctx context.Context, name string, optional *bool) (map[string]string, error) {
	got, err := w.k.client.CoreV1().Secrets(w.current().Namespace).Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) && ptr.Deref(optional, false) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read Secret %s: %w", name, err)
	}
	data := map[string]string{}
	for key, value := range got.Data {
		data[key] = string(value)
	}
	return data, nil
}

// field is the downward API (fieldRef).
func (w *worker) field(path string) (string, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	pod := w.pod
	var podIPs, hostIPs []string
	for _, address := range w.podIPs() {
		podIPs = append(podIPs, address.String())
	}
	for _, address := range w.k.config.Addresses {
		hostIPs = append(hostIPs, address.String())
	}
	if name, key, ok := subscript(path); ok {
		switch name {
		case "metadata.labels":
			return pod.Labels[key], nil
		case "metadata.annotations":
			return pod.Annotations[key], nil
		}
	}
	switch path {
	case "metadata.name":
		return pod.Name, nil
	case "metadata.namespace":
		return pod.Namespace, nil
	case "metadata.uid":
		return string(pod.UID), nil
	case "metadata.labels":
		return formatMap(pod.Labels), nil
	case "metadata.annotations":
		return formatMap(pod.Annotations), nil
	case "spec.nodeName":
		return pod.Spec.NodeName, nil
	case "spec.serviceAccountName":
		return pod.Spec.ServiceAccountName, nil
	case "status.podIP":
		return firstOf(podIPs), nil
	case "status.podIPs":
		return strings.Join(podIPs, ","), nil
	case "status.hostIP":
		return firstOf(hostIPs), nil
	case "status.hostIPs":
		return strings.Join(hostIPs, ","), nil
	}
	return "", fmt.Errorf("field %s: not in the downward API", path)
}

// subscript splits metadata.labels['key'].
func subscript(path string) (name, key string, ok bool) {
	name, rest, ok := strings.Cut(path, "['")
	key, end := strings.CutSuffix(rest, "']")
	return name, key, ok && end
}

func firstOf(values []string) string {
	if len(values) == 0 {
		return ""
	}
	return values[0]
}

func formatMap(m map[string]string) string {
	var out strings.Builder
	for _, key := range sorted(slices.Collect(maps.Keys(m))) {
		fmt.Fprintf(&out, "%s=%q\n", key, m[key])
	}
	return strings.TrimSuffix(out.String(), "\n")
}

// resource is the downward API (resourceFieldRef): a limit or request in units
// of the divisor, rounded up; the node's capacity where there is none.
func (c *container) resource(ref *corev1.ResourceFieldSelector) (string, error) {
	kind, name, ok := strings.Cut(ref.Resource, ".")
	if !ok {
		return "", fmt.Errorf("resource %s: must be limits.NAME or requests.NAME", ref.Resource)
	}
	list := c.spec.Resources.Limits
	if kind == "requests" {
		list = c.spec.Resources.Requests
	}
	quantity, set := list[corev1.ResourceName(name)]
	if !set && kind == "limits" {
		quantity = c.w.k.node().Status.Allocatable[corev1.ResourceName(name)]
	}
	divisor := ref.Divisor.MilliValue()
	if divisor == 0 {
		divisor = 1000
	}
	return strconv.FormatInt((quantity.MilliValue()+divisor-1)/divisor, 10), nil
}

var reference = regexp.MustCompile(`\$\$|\$\([A-Za-z_.-][A-Za-z0-9_.-]*\)`)

// expandVariables replaces $(NAME) by its value; an unknown one stays, and $$
// is a dollar sign.
func expandVariables(s string, env map[string]string) string {
	return reference.ReplaceAllStringFunc(s, func(match string) string {
		if match == "$$" {
			return "$"
		}
		if value, ok := env[match[2:len(match)-1]]; ok {
			return value
		}
		return match
	})
}
