// SPDX-License-Identifier: Apache-2.0

package kubelet

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"
)

// worker runs one Pod, from its first sight to its end.
type worker struct {
	k   *Kubelet
	uid types.UID
	dir string // on the node's tmpfs

	// changed is signalled when the status has to be written anew.
	changed chan struct{}
	// deleting is closed when the Pod is to end; killed when at once.
	deleting, killed     chan struct{}
	onceDelete, onceKill sync.Once

	mu         sync.Mutex
	pod        *corev1.Pod // as last seen in the API; never modified
	network    *podNetwork // nil for hostNetwork, and before it is made
	networked  bool
	volumes    map[string]string // name to directory or file of the node
	initial    []*container
	containers []*container
	ephemeral  []*container
	waiting    corev1.ContainerStateWaiting // why nothing has started yet
	start      metav1.Time
	evicted    string             // why, when the node has thrown it out
	life       context.Context    // of its containers; nil until there are some
	end        context.CancelFunc // ends life
	over       bool
}

func newWorker(k *Kubelet, pod *corev1.Pod) *worker {
	w := &worker{
		k: k, uid: pod.UID, pod: pod, start: metav1.Now(),
		dir:     filepath.Join("/run/kubelet/pods", string(pod.UID)),
		changed: make(chan struct{}, 1), deleting: make(chan struct{}), killed: make(chan struct{}),
		waiting: corev1.ContainerStateWaiting{Reason: "ContainerCreating"},
	}
	if pod.Status.StartTime != nil {
		w.start = *pod.Status.StartTime
	}
	for i := range pod.Spec.InitContainers {
		w.initial = append(w.initial, newContainer(w, &pod.Spec.InitContainers[i], pod.Status.InitContainerStatuses))
	}
	for i := range pod.Spec.Containers {
		w.containers = append(w.containers, newContainer(w, &pod.Spec.Containers[i], pod.Status.ContainerStatuses))
	}
	return w
}

// update takes over what the API says now.
func (w *worker) update(pod *corev1.Pod) {
	w.mu.Lock()
	w.pod = pod
	w.mu.Unlock()
	if pod.DeletionTimestamp != nil {
		w.onceDelete.Do(func() { close(w.deleting) })
		if ptr.Deref(pod.DeletionGracePeriodSeconds, 0) == 0 {
			w.onceKill.Do(func() { close(w.killed) })
		}
	}
	w.startEphemeral()
	w.touch() // readiness gates may have changed
}

// startEphemeral starts the ephemeral containers (KEP-277) that are new, once the
// others have been started.
func (w *worker) startEphemeral() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.life == nil {
		return
	}
	for i := len(w.ephemeral); i < len(w.pod.Spec.EphemeralContainers); i++ {
		spec := corev1.Container(w.pod.Spec.EphemeralContainers[i].EphemeralContainerCommon)
		c := newContainer(w, &spec, nil)
		w.ephemeral = append(w.ephemeral, c)
		go c.runOnce(w.life)
	}
}

// container returns a container by name, nil for one that is not there.
func (w *worker) container(name string) *container {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range slices.Concat(w.containers, w.initial, w.ephemeral) {
		if c.spec.Name == name {
			return c
		}
	}
	return nil
}

// ended reports whether all containers have ended for good.
func (w *worker) ended() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.over
}

// evict ends a Pod that takes more than it may.
func (w *worker) evict(why string) {
	w.mu.Lock()
	w.evicted = why
	end := w.end
	w.mu.Unlock()
	w.k.events.Event(w.current(), corev1.EventTypeWarning, "Evicted", why)
	end()
}

// gone ends a Pod that the API no longer has.
func (w *worker) gone() {
	w.onceDelete.Do(func() { close(w.deleting) })
	w.onceKill.Do(func() { close(w.killed) })
}

// touch has the status written soon.
func (w *worker) touch() {
	select {
	case w.changed <- struct{}{}:
	default:
	}
}

// current returns the Pod as last seen, to read only.
func (w *worker) current() *corev1.Pod {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.pod
}

func (w *worker) run(ctx context.Context) {
	statusCtx, stopStatus := context.WithCancel(ctx)
	defer stopStatus()
	var status sync.WaitGroup
	status.Go(func() { w.keepStatus(statusCtx) })

	// life ends when the Pod is to end or the kubelet stops.
	life, end := context.WithCancel(ctx)
	defer end()
	w.mu.Lock()
	w.end = end
	w.mu.Unlock()
	go func() {
		select {
		case <-w.deleting:
		case <-life.Done():
		}
		end()
	}()
	w.live(life)
	w.mu.Lock()
	w.over = true
	w.mu.Unlock()
	w.tearDown()
	stopStatus()
	status.Wait()

	// A Pod that has ended by itself keeps its worker until it is deleted.
	retry(ctx, func() error {
		if !w.writeStatus(ctx) {
			return errNotWritten
		}
		return nil
	})
	select {
	case <-w.deleting:
		w.confirmDeletion(ctx)
	case <-ctx.Done():
	}
}

// live sets the Pod up, runs its containers and returns when all have ended.
func (w *worker) live(ctx context.Context) {
	if !retry(ctx, func() error { return w.setUp(ctx) }) {
		return
	}
	w.touch()
	// Sidecars end after the others.
	sidecarLife, endSidecars := context.WithCancel(context.WithoutCancel(ctx))
	var sidecars sync.WaitGroup
	defer sidecars.Wait()
	defer endSidecars()
	for _, c := range w.initial {
		if c.sidecar() {
			sidecars.Go(func() { c.run(sidecarLife) })
			if !c.awaitStarted(ctx) {
				return
			}
		} else if !c.runInitial(ctx) {
			return
		}
	}
	w.mu.Lock()
	w.life = ctx
	w.mu.Unlock()
	w.startEphemeral()
	var running sync.WaitGroup
	for _, c := range w.containers {
		running.Go(func() { c.run(ctx) })
	}
	running.Wait()
}

// setUp makes network and volumes. It can be called again after an error.
func (w *worker) setUp(ctx context.Context) error {
	if err := os.MkdirAll(w.dir, 0o755); err != nil {
		return w.stuck("CreatePodSandboxError", err)
	}
	pod := w.current()
	if !w.networked && !pod.Spec.HostNetwork {
		network, err := w.k.connectPod(pod.UID)
		if err != nil {
			return w.stuck("CreatePodSandboxError", err)
		}
		if err := w.k.openHostPorts(pod, network); err != nil {
			w.k.disconnectPod(network)
			return w.stuck("CreatePodSandboxError", err)
		}
		w.mu.Lock()
		w.network = network
		w.mu.Unlock()
	}
	w.mu.Lock()
	w.networked = true
	w.mu.Unlock()
	volumes, err := w.makeVolumes(ctx)
	if err != nil {
		return w.stuck("FailedMount", err)
	}
	if err := w.writeNetworkFiles(); err != nil {
		return w.stuck("CreatePodSandboxError", err)
	}
	w.mu.Lock()
	w.volumes = volumes
	w.waiting = corev1.ContainerStateWaiting{Reason: "PodInitializing"}
	w.mu.Unlock()
	return nil
}

// stuck records why a Pod doesn't start, once for every different reason.
func (w *worker) stuck(reason string, err error) error {
	w.mu.Lock()
	news := w.waiting.Message != err.Error()
	w.waiting = corev1.ContainerStateWaiting{Reason: "ContainerCreating", Message: err.Error()}
	w.mu.Unlock()
	if news {
		w.k.events.Event(w.current(), corev1.EventTypeWarning, reason, err.Error())
		w.touch()
	}
	return err
}

func (w *worker) tearDown() {
	w.mu.Lock()
	network := w.network
	w.mu.Unlock()
	pod := w.current()
	if network != nil {
		w.k.closeHostPorts(pod, network)
		w.k.disconnectPod(network)
	}
	for _, dir := range []string{w.dir, filepath.Dir(PIDPath(w.k.config.Runtime, pod.Namespace, pod.Name, "x"))} {
		if err := os.RemoveAll(dir); err != nil {
			w.k.log.Error(err, "Pod's directory not removed", "pod", pod.Name)
		}
	}
}

// confirmDeletion tells the API server that nothing of the Pod is left.
func (w *worker) confirmDeletion(ctx context.Context) {
	pod := w.current()
	retry(ctx, func() error {
		err := w.k.client.CoreV1().Pods(pod.Namespace).Delete(ctx, pod.Name, metav1.DeleteOptions{
			GracePeriodSeconds: ptr.To(int64(0)),
			Preconditions:      &metav1.Preconditions{UID: &pod.UID},
		})
		if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
			return nil
		}
		return err
	})
}

// keepStatus writes the status whenever it changed, again after a while when
// that failed.
func (w *worker) keepStatus(ctx context.Context) {
	wait := 100 * time.Millisecond
	for {
		select {
		case <-ctx.Done():
			return
		case <-w.changed:
		}
		if w.writeStatus(ctx) {
			wait = 100 * time.Millisecond
			continue
		}
		w.touch()
		if !sleep(ctx, wait) {
			return
		}
		wait = min(2*wait, 2*time.Second)
	}
}

var errNotWritten = errors.New("status not written")

// writeStatus writes the status and tells whether that worked, or was not
// needed.
func (w *worker) writeStatus(ctx context.Context) bool {
	pod := w.current()
	patch, err := statusPatch(pod, w.status())
	if err != nil {
		w.k.log.Error(err, "Status not encoded", "pod", pod.Name)
		return true
	}
	if patch == nil {
		return true
	}
	got, err := w.k.client.CoreV1().Pods(pod.Namespace).Patch(ctx, pod.Name, types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "status")
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return true // it is gone, or another has its name
	}
	if err != nil {
		if ctx.Err() == nil {
			w.k.log.Error(err, "Status not written, will retry", "pod", pod.Name)
		}
		return false
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.pod == pod {
		w.pod = got // the watch brings it, or something newer, in a moment
	}
	return true
}

func (w *worker) writeNetworkFiles() error {
	pod := w.current()
	files := map[string]string{
		"hostname": w.hostname() + "\n",
		"hosts":    "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost\n",
	}
	files["resolv.conf"] = w.resolvConf()
	names := w.hostname()
	if pod.Spec.Subdomain != "" && !pod.Spec.HostNetwork {
		names = fmt.Sprintf("%s.%s.%s.svc.cluster.local\t%s", names, pod.Spec.Subdomain, pod.Namespace, names)
	}
	if w.network != nil {
		for _, address := range w.network.addresses {
			files["hosts"] += fmt.Sprintf("%s\t%s\n", address, names)
		}
	}
	if len(pod.Spec.HostAliases) > 0 {
		files["hosts"] += "\n# Entries added by HostAliases.\n"
	}
	for _, alias := range pod.Spec.HostAliases {
		files["hosts"] += fmt.Sprintf("%s\t%s\n", alias.IP, strings.Join(alias.Hostnames, "\t"))
	}
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(w.dir, name), []byte(content), 0o644); err != nil {
			return fmt.Errorf("write %s: %w", name, err)
		}
	}
	return nil
}

// resolvConf is what dnsPolicy and dnsConfig ask for.
func (w *worker) resolvConf() string {
	pod := w.current()
	var servers, searches []string
	options := map[string]string{}
	cluster := pod.Spec.DNSPolicy == corev1.DNSClusterFirst && !pod.Spec.HostNetwork || pod.Spec.DNSPolicy == corev1.DNSClusterFirstWithHostNet
	if cluster && w.k.config.DNS.IsValid() {
		servers = append(servers, w.k.config.DNS.String())
		searches = append(searches, pod.Namespace+".svc.cluster.local", "svc.cluster.local", "cluster.local")
		options["ndots"] = "5"
	}
	if config := pod.Spec.DNSConfig; config != nil {
		servers = append(servers, config.Nameservers...)
		searches = append(searches, config.Searches...)
		for _, option := range config.Options {
			options[option.Name] = ptr.Deref(option.Value, "")
		}
	}
	var out strings.Builder
	for _, server := range servers {
		fmt.Fprintf(&out, "nameserver %s\n", server)
	}
	if len(searches) > 0 {
		fmt.Fprintf(&out, "search %s\n", strings.Join(searches, " "))
	}
	if len(options) > 0 {
		out.WriteString("options")
		for _, name := range sorted(slices.Collect(maps.Keys(options))) {
			out.WriteString(" " + name)
			if value := options[name]; value != "" {
				out.WriteString(":" + value)
			}
		}
		out.WriteString("\n")
	}
	return out.String()
}

func (w *worker) hostname() string {
	pod := w.current()
	switch {
	case ptr.Deref(pod.Spec.HostnameOverride, "") != "":
		return *pod.Spec.HostnameOverride
	case pod.Spec.HostNetwork:
		return w.k.config.Node
	case pod.Spec.Hostname != "":
		return pod.Spec.Hostname
	case len(pod.Name) > 63:
		return pod.Name[:63]
	}
	return pod.Name
}
