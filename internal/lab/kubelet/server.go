// SPDX-License-Identifier: Apache-2.0

package kubelet

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// serve answers the API server on the kubelet's port until ctx ends: containers'
// logs, exec, attach and port-forward, the node's Pods and logs, and /healthz. Only clients that the cluster's authority vouches for as
// the API server get in.
func (k *Kubelet) serve(ctx context.Context) error {
	certificate, err := tls.X509KeyPair(k.config.Serving.Cert, k.config.Serving.Key)
	if err != nil {
		return fmt.Errorf("load serving certificate: %w", err)
	}
	clients := x509.NewCertPool()
	clients.AppendCertsFromPEM(k.config.Authority)
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /containerLogs/{namespace}/{pod}/{container}", k.serveLogs)
	mux.HandleFunc("GET /pods", k.servePods)
	mux.Handle("GET /logs/", http.StripPrefix("/logs/", http.FileServer(http.Dir(k.config.Logs))))
	k.handleStreams(mux)
	server := &http.Server{
		Addr:              ":" + strconv.Itoa(port),
		Handler:           apiServerOnly(mux),
		ReadHeaderTimeout: 10 * time.Second,
		TLSConfig: &tls.Config{
			Certificates: []tls.Certificate{certificate},
			ClientCAs:    clients, ClientAuth: tls.RequireAndVerifyClientCert,
			MinVersion: tls.VersionTLS12,
		},
	}
	stop := context.AfterFunc(ctx, func() { server.Close() })
	defer stop()
	if err := server.ListenAndServeTLS("", ""); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve kubelet API: %w", err)
	}
	return nil
}

// APIServerUser is the user of the certificate with which the API server
// calls kubelets.
const APIServerUser = "kube-apiserver-kubelet-client"

func apiServerOnly(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.TLS == nil || len(r.TLS.PeerCertificates) == 0 || r.TLS.PeerCertificates[0].Subject.CommonName != APIServerUser {
			http.Error(w, "only the API server may ask", http.StatusForbidden)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// serveLogs knows follow and tailLines. There are no time stamps in the lab's
// logs, so it doesn't know sinceTime, and a restarted container's log goes on
// in the same file.
func (k *Kubelet) serveLogs(w http.ResponseWriter, r *http.Request) {
	for _, part := range []string{"namespace", "pod", "container"} {
		if name := r.PathValue(part); strings.ContainsAny(name, "/") || name == ".." || name == "." {
			http.Error(w, "bad "+part, http.StatusBadRequest)
			return
		}
	}
	file, err := os.Open(LogPath(k.config.Logs, r.PathValue("namespace"), r.PathValue("pod"), r.PathValue("container")))
	if err != nil {
		http.Error(w, "no log: "+err.Error(), http.StatusNotFound)
		return
	}
	defer file.Close()
	if lines, err := strconv.Atoi(r.URL.Query().Get("tailLines")); err == nil {
		if err := seekTail(file, lines); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
	}
	w.Header().Set("Content-Type", "text/plain")
	for {
		if _, err := io.Copy(w, file); err != nil {
			return
		}
		if r.URL.Query().Get("follow") != "true" {
			return
		}
		w.(http.Flusher).Flush()
		if !sleep(r.Context(), eager) {
			return
		}
	}
}

// servePods lists the node's Pods.
func (k *Kubelet) servePods(w http.ResponseWriter, _ *http.Request) {
	list := corev1.PodList{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "PodList"}}
	k.mu.Lock()
	for _, worker := range k.workers {
		list.Items = append(list.Items, *worker.current())
	}
	k.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(&list)
}

// seekTail goes to where the last lines begin.
func seekTail(file *os.File, lines int) error {
	data, err := io.ReadAll(file)
	if err != nil {
		return err
	}
	at := len(data)
	for ; lines > 0 && at > 0; lines-- {
		at = bytes.LastIndexByte(data[:at-1], '\n') + 1
	}
	_, err = file.Seek(int64(at), io.SeekStart)
	return err
}
